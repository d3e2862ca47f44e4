//! Waking, and what data belongs to.

use super::*;

#[tokio::test]
async fn a_wake_without_room_takes_the_next_type() {
    let stopped = |kind: &str| {
        Thing::machine(&target(1), "stopped").with("volume", "vol-1").with("kind", kind).with("subnet", "subnet-a")
    };
    let asleep = stopped("t3.micro");
    let server = Server::start(move |asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, std::slice::from_ref(&asleep)),
        "StartInstances" => refusal(500, "InsufficientInstanceCapacity"),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let error = backend.resume(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::CapacityExhausted, Retry::Backoff), "{error}");
    let changes = |asked: &[Asked]| {
        let changes = asked.iter().filter(|asked| asked.action == "ModifyInstanceAttribute");
        changes.map(|asked| asked.parameters["InstanceType.Value"].clone()).collect::<Vec<_>>()
    };
    let asked = server.asked();
    assert_eq!((changes(&asked), actions(&asked, "StartInstances")), (vec!["t3.small".to_owned()], 2));

    // It has the larger type now. Once there is room again it has its own.
    let asleep = stopped("t3.small");
    server.answer(move |asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, std::slice::from_ref(&asleep)),
        _ => empty(asked),
    });
    let other = server.backend(config());
    other.resume(&cx(), &target(1)).await.unwrap();
    let asked = server.asked();
    assert_eq!((changes(&asked), actions(&asked, "StartInstances")), (vec!["t3.micro".to_owned()], 1));
}

#[tokio::test]
async fn data_that_earlier_makings_left_goes_with_the_instance_and_that_of_later_ones_stays() {
    let of = |number| {
        let mut target = target(1);
        target.incarnation = Incarnation::new(number, number.into());
        target
    };
    let server = Server::start(move |asked| match asked.action.as_str() {
        "DescribeVolumes" => volumes(asked, &[1, 3].map(|number| Thing::volume(&of(number), number))),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    backend.destroy(&cx(), &of(2), DataDisposition::Retain).await.unwrap();
    assert_eq!(actions(&server.asked(), "DeleteVolume"), 0);
    backend.destroy(&cx(), &of(2), DataDisposition::Delete).await.unwrap();
    let asked = server.asked();
    let deleted: Vec<_> = asked.iter().filter(|asked| asked.action == "DeleteVolume").collect();
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].parameters["VolumeId"], "vol-1");
}

#[tokio::test]
async fn of_several_volumes_with_the_same_data_none_is_taken() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeVolumes" => {
            let of = |n| Target { incarnation: Incarnation::new(1, n), ..target(1) };
            volumes(asked, &[Thing::volume(&of(7), 7), Thing::volume(&of(8), 8)])
        }
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let mut target = target(1);
    (target.incarnation, target.data) = (Incarnation::new(2, 9), DataSource::Existing(target.data.id().clone()));
    let error = backend.create(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.effect()), (ErrorKind::Conflict, Some("data"), Effect::None));
    assert!(error.to_string().contains("vol-7") && error.to_string().contains("vol-8"), "{error}");
    assert_eq!(actions(&server.asked(), "RunInstances"), 0);
}

#[tokio::test]
async fn a_machine_is_not_ended_for_one_that_cannot_be_made() {
    let mut newer = target(1);
    newer.generation = newer.generation.next();
    Arc::make_mut(&mut newer.spec).workload.vm_image = Some("ami-2".into());
    let mut elsewhere = config();
    elsewhere.places.retain(|place| place.zone == "us-east-1b");
    // An image that is being made still is none yet; and a volume stays in its zone, where the cell has no place any more.
    for (config, has_image, expected) in [
        (config(), false, (ErrorKind::InvalidSpec, Some("workload.vm_image"))),
        (elsewhere, true, (ErrorKind::Conflict, Some("data"))),
    ] {
        let server = Server::start(move |asked| match asked.action.as_str() {
            "DescribeInstances" => machines(asked, &[Thing::machine(&target(1), "running").with("volume", "vol-1")]),
            "DescribeVolumes" => volumes(asked, &[Thing::volume(&target(1), 1)]),
            "DescribeImages" if !has_image => ok(asked, "<imagesSet/>"),
            _ => empty(asked),
        })
        .await;
        let error = server.backend(config).create(&cx(), &newer).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), expected, "{error}");
        let asked = server.asked();
        assert_eq!(actions(&asked, "TerminateInstances"), 0, "{expected:?}");
        let images = asked.iter().filter(|asked| asked.action == "DescribeImages");
        assert!(images.into_iter().all(|asked| asked.parameters["Filter.1.Name"] == "state"));
    }
    // With both it is.
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, &[Thing::machine(&target(1), "running").with("volume", "vol-1")]),
        "DescribeVolumes" => volumes(asked, &[Thing::volume(&target(1), 1)]),
        _ => empty(asked),
    })
    .await;
    server.backend(config()).create(&cx(), &newer).await.unwrap();
    assert_eq!(actions(&server.asked(), "TerminateInstances"), 1);
}
