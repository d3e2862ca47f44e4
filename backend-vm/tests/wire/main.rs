//! What is asked of the service, and what is made of answers that a healthy service does not give.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test may panic")]

#[path = "../shared/clients.rs"]
mod clients;
mod server;
mod things;

use std::{sync::Arc, time::Duration};

use backend_vm::{Place, VmBackend, VmConfig};
use provisioner_core::{
    Effect, ErrorKind, OpContext, Provisioner, Retry,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Phase, Target, TenantId, Workload,
    },
};

use crate::{
    server::{Asked, Server, empty, machine, ok, refusal},
    things::{Thing, machines, volumes},
};

const SETTLING: Duration = Duration::from_millis(400);

fn config() -> VmConfig {
    let place = |n: &str| Place { subnet: format!("subnet-{n}"), zone: format!("us-east-1{n}") };
    let mut config = VmConfig::new("us-east-1", vec![place("a"), place("b")]);
    config.types.truncate(2);
    config.settling = SETTLING;
    config
}

fn target(n: u128) -> Target {
    let mut workload = Workload::new("1.0").with_command(["/usr/local/bin/product"]);
    workload.vm_image = Some("ami-1".into());
    workload.port = Some(8080);
    Target {
        id: InstanceId::new(format!("acme-{n}")).unwrap(),
        tenant: TenantId::new("Acme").unwrap(),
        incarnation: Incarnation::new(1, n),
        generation: Generation::FIRST,
        spec: Arc::new(InstanceSpec::new(workload)),
        data: DataSource::Fresh(DataId::from_random(n)),
    }
}

fn cx() -> OpContext {
    OpContext::new(ControlPlaneId::new("plane").unwrap()).with_timeout(Duration::from_secs(10))
}

fn after_a_call() -> OpContext {
    let mut cx = cx();
    cx.since_last_call = Some(Duration::ZERO);
    cx
}

fn actions(asked: &[Asked], action: &str) -> usize {
    asked.iter().filter(|asked| asked.action == action).count()
}

/// An account where machines are made, and which then shows nothing of them.
fn forgetful(asked: &Asked) -> server::Answer {
    match asked.action.as_str() {
        "RunInstances" => ok(asked, &machine(asked, "i-1", "pending")),
        _ => empty(asked),
    }
}

async fn start() -> (Server, VmBackend) {
    let server = Server::start(forgetful).await;
    let backend = server.backend(config());
    (server, backend)
}

#[tokio::test]
async fn a_machine_is_asked_for_with_all_that_makes_it_safe() {
    let (server, backend) = start().await;
    let seen = backend.create(&cx(), &target(1)).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Provisioning));
    let asked = server.asked();
    let run = asked.iter().find(|asked| asked.action == "RunInstances").unwrap();
    let token = target(1).incarnation.token(&ControlPlaneId::new("plane").unwrap(), &target(1).id);
    for (name, value) in [
        ("ClientToken", token.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("ImageId", "ami-1"),
        ("InstanceType", "t3.micro"),
        ("NetworkInterface.1.SubnetId", "subnet-a"),
        ("NetworkInterface.1.AssociatePublicIpAddress", "false"),
        ("NetworkInterface.1.DeleteOnTermination", "true"),
        ("MetadataOptions.HttpTokens", "required"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.Encrypted", "true"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("BlockDeviceMapping.2.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.2.Ebs.DeleteOnTermination", "false"),
        ("BlockDeviceMapping.2.Ebs.Encrypted", "true"),
        ("BlockDeviceMapping.2.Ebs.VolumeSize", "1"),
        ("BlockDeviceMapping.2.Ebs.VolumeType", "gp3"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.2.ResourceType", "volume"),
        ("TagSpecification.3.ResourceType", "network-interface"),
    ] {
        assert_eq!(run.parameters.get(name).map(String::as_str), Some(value), "{name}");
    }
    let tenant = target(1).tenant.digest();
    assert!(run.parameters.values().any(|value| *value == tenant));
    assert!(!run.parameters.values().any(|value| value.contains("Acme")), "a tenant is named as a hash alone");
}

#[tokio::test]
async fn a_hundred_at_once_share_what_they_ask() {
    let (server, _) = start().await;
    let mut config = config();
    config.buckets.run.size = 100;
    let backend = server.backend(config);
    let targets: Vec<_> = (1..=100).map(target).collect();
    let (cx, backend) = (&cx(), &backend);
    let made = futures::future::join_all(targets.iter().map(|target| backend.create(cx, target))).await;
    assert!(made.into_iter().all(|made| made.is_ok()));
    let asked = server.asked();
    assert_eq!(actions(&asked, "RunInstances"), 100);
    assert!(asked.len() <= 106, "{} requests for 100 machines", asked.len());
}

#[tokio::test]
async fn what_was_made_and_is_not_shown_is_unknown_until_it_has_had_its_time() {
    let (_server, backend) = start().await;
    backend.create(&cx(), &target(1)).await.unwrap();
    let seen = backend.observe(&after_a_call(), &target(1)).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { again } if again > Duration::ZERO), "{seen:?}");
    let mut later = cx();
    later.since_last_call = Some(SETTLING);
    // One answer that shows nothing may lag, too.
    let seen = backend.observe(&later, &target(1)).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { again } if again <= SETTLING), "{seen:?}");
    tokio::time::sleep(SETTLING).await;
    assert_eq!(backend.observe(&later, &target(1)).await.unwrap(), Observed::Absent);
}

#[tokio::test]
async fn a_throttled_call_says_when_to_come_back_and_the_next_one_waits() {
    let server = Server::start(|_| refusal(503, "RequestLimitExceeded")).await;
    let backend = server.backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Throttled, Effect::None));
    assert!(matches!(error.retry(), Retry::After(_)), "{error}");
    assert_eq!((error.code(), error.request_id()), (Some("RequestLimitExceeded"), Some("request-1")));
    server.answer(forgetful);
    server.asked();
    let hasty = cx().with_timeout(Duration::from_millis(300));
    let error = backend.create(&hasty, &target(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None), "{error}");
    assert_eq!(server.asked().len(), 0, "nothing is sent for a while");
}

#[tokio::test]
async fn another_answer_to_the_same_token_is_looked_for() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "RunInstances" => refusal(400, "IdempotentParameterMismatch"),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert_ne!(error.retry(), Retry::Never);
    let seen = backend.observe(&after_a_call(), &target(1)).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { .. }), "{seen:?}");
}

#[tokio::test]
async fn without_room_every_place_and_type_is_tried_once_each_by_another_incarnation() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "RunInstances" => refusal(500, "InsufficientInstanceCapacity"),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let mut retries = Vec::new();
    for n in 1..=4 {
        let error = backend.create(&cx(), &target(n)).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::CapacityExhausted, Effect::None), "{error}");
        retries.push(error.retry());
    }
    assert_eq!(retries, [Retry::Anew, Retry::Anew, Retry::Anew, Retry::Backoff]);
    let runs: Vec<_> = server.asked().into_iter().filter(|asked| asked.action == "RunInstances").collect();
    let places: Vec<_> = runs
        .iter()
        .map(|run| (run.parameters["NetworkInterface.1.SubnetId"].as_str(), run.parameters["InstanceType"].as_str()))
        .collect();
    let expected =
        [("subnet-a", "t3.micro"), ("subnet-b", "t3.micro"), ("subnet-a", "t3.small"), ("subnet-b", "t3.small")];
    assert_eq!(places, expected);
}

#[tokio::test]
async fn a_request_whose_answer_says_nothing_goes_to_the_same_place_again() {
    let server = Server::start(|asked| match (asked.action.as_str(), &*asked.parameters["Action"]) {
        ("RunInstances", _) if asked.parameters["NetworkInterface.1.SubnetId"] == "subnet-a" => {
            (500, "<html>oh no</html>".into())
        }
        _ => forgetful(asked),
    })
    .await;
    let backend = server.backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    // Another making finds that there is no room.
    server.answer(|asked| match asked.action.as_str() {
        "RunInstances" => refusal(500, "InsufficientInstanceCapacity"),
        _ => empty(asked),
    });
    assert_eq!(backend.create(&cx(), &target(2)).await.unwrap_err().retry(), Retry::Anew);
    server.answer(forgetful);
    server.asked();
    backend.create(&cx(), &target(1)).await.unwrap();
    let asked = server.asked();
    let run = asked.iter().find(|asked| asked.action == "RunInstances").unwrap();
    assert_eq!(
        run.parameters["NetworkInterface.1.SubnetId"], "subnet-a",
        "its first request may have been carried out"
    );
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_told_as_such() {
    for (status, body) in [(200, "<unfinished"), (500, "<html>oh no</html>"), (502, "")] {
        let answer = (status, body.to_owned());
        let server = Server::start(move |asked| match asked.action.as_str() {
            "RunInstances" => answer.clone(),
            _ => empty(asked),
        })
        .await;
        let backend = server.backend(config());
        let error = backend.create(&cx(), &target(1)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::Unknown, "{status} {body}: {error}");
        assert_ne!(error.retry(), Retry::Never, "{status} {body}: {error}");
        assert!(error.to_string().contains("acme-1") && error.to_string().contains("RunInstances"), "{error}");
        // Nobody looks, so nobody has acted.
        let answer = (status, body.to_owned());
        server.answer(move |_| answer.clone());
        let error = backend.observe(&cx(), &target(2)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::None, "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_no_effect() {
    let (server, _) = start().await;
    drop(server);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let backend = Server::at(free).backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
}

/// Three machines that run.
fn fleet(asked: &Asked) -> server::Answer {
    match asked.action.as_str() {
        "DescribeInstances" => {
            let all: Vec<_> = (1..=3).map(|n| Thing::machine(&target(n), "running")).collect();
            machines(asked, &all)
        }
        "StopInstances" if asked.parameters.values().any(|value| value == "i-2") => {
            refusal(400, "IncorrectInstanceState")
        }
        _ => empty(asked),
    }
}

#[tokio::test]
async fn one_bad_machine_in_a_batch_fails_no_other() {
    let server = Server::start(fleet).await;
    let backend = server.backend(config());
    let targets: Vec<_> = (1..=3).map(target).collect();
    let (cx, backend) = (&cx(), &backend);
    let stopped = futures::future::join_all(targets.iter().map(|target| backend.scale_to_zero(cx, target))).await;
    let fine: Vec<_> = stopped.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, false, true], "{stopped:?}");
    let asked = server.asked();
    assert_eq!(actions(&asked, "StopInstances"), 5, "all of them, and then halves of what was refused");
}

#[tokio::test]
async fn a_machine_that_is_protected_is_reported() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "TerminateInstances" => refusal(400, "OperationNotPermitted"),
        _ => fleet(asked),
    })
    .await;
    let backend = server.backend(config());
    let error = backend.destroy(&cx(), &target(1), DataDisposition::Retain).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("protection"), Retry::Backoff));
}

/// What a machine that nobody shows yet is asked by its id.
#[tokio::test]
async fn not_found_right_after_it_was_made_is_no_absence() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, &[Thing::machine(&target(1), "running").with("volume", "vol-1")]),
        "DescribeInstanceStatus" | "CreateTags" => refusal(400, "InvalidInstanceID.NotFound"),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let seen = backend.observe(&cx(), &target(1)).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Provisioning), "{seen:?}");
    let error = backend.scale_to_zero(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotFound, Retry::Backoff), "{error}");
}

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
async fn a_machine_that_ended_instead_of_coming_up_is_told_with_the_services_words() {
    let ended = |code: &str| Thing::machine(&target(1), "terminated").with("code", code);
    let failed = ended("Client.InternalError");
    let server = Server::start(move |asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, std::slice::from_ref(&failed)),
        _ => forgetful(asked),
    })
    .await;
    let backend = server.backend(config());
    let seen = backend.observe(&cx(), &target(1)).await.unwrap();
    let present = seen.present().unwrap();
    let reason = present.reason.as_ref().unwrap();
    assert_eq!((present.phase, &*reason.code), (Phase::Failed, "launch-failed"));
    assert!(reason.message.contains("Client.InternalError"), "{reason:?}");
    // It is made again, by another token.
    backend.create(&cx(), &target(1)).await.unwrap();
    let token = target(1).incarnation.token(&ControlPlaneId::new("plane").unwrap(), &target(1).id);
    let asked = server.asked();
    let run = asked.iter().find(|asked| asked.action == "RunInstances").unwrap();
    assert_eq!(run.parameters["ClientToken"], format!("{token}-1"));
    // What was to be removed is gone.
    let gone = backend.destroy(&cx(), &target(1), DataDisposition::Delete).await.unwrap();
    assert_eq!(gone, Observed::Absent);
    assert_eq!(backend.observe(&cx(), &target(1)).await.unwrap(), Observed::Absent);
    // Somebody ended it: that is no failure.
    let ended = ended("Client.UserInitiatedShutdown");
    server.answer(move |asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, std::slice::from_ref(&ended)),
        _ => forgetful(asked),
    });
    let other = server.backend(config());
    assert_eq!(other.observe(&cx(), &target(1)).await.unwrap(), Observed::Absent);
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
async fn all_that_a_cell_is_told_is_in_the_request() {
    let (server, _) = start().await;
    let mut config = config();
    config.security_groups = vec!["sg-1".into(), "sg-2".into()];
    config.instance_profile = Some("product".into());
    config.kms_key = Some("key-1".into());
    config.root_gib = Some(20);
    config.public_address = Some(true);
    server.backend(config.clone()).create(&cx(), &target(1)).await.unwrap();
    config.public_address = None;
    config.unlimited_cpu = true;
    server.backend(config).create(&cx(), &target(2)).await.unwrap();
    let runs: Vec<_> = server.asked().into_iter().filter(|asked| asked.action == "RunInstances").collect();
    let has = |run: &Asked, expected: &[(&str, Option<&str>)]| {
        for (name, value) in expected {
            assert_eq!(run.parameters.get(*name).map(String::as_str), *value, "{name}");
        }
    };
    for run in &runs {
        has(
            run,
            &[
                ("IamInstanceProfile.Name", Some("product")),
                ("BlockDeviceMapping.1.Ebs.KmsKeyId", Some("key-1")),
                ("BlockDeviceMapping.1.Ebs.VolumeSize", Some("20")),
                ("BlockDeviceMapping.2.Ebs.KmsKeyId", Some("key-1")),
                ("MetadataOptions.HttpPutResponseHopLimit", Some("1")),
            ],
        );
    }
    has(
        &runs[0],
        &[
            ("NetworkInterface.1.AssociatePublicIpAddress", Some("true")),
            ("NetworkInterface.1.SecurityGroupId.2", Some("sg-2")),
            ("CreditSpecification.CpuCredits", Some("standard")),
        ],
    );
    // As the subnet says, and as the service does by itself.
    has(
        &runs[1],
        &[
            ("NetworkInterface.1.SubnetId", None),
            ("SubnetId", Some("subnet-a")),
            ("SecurityGroupId.1", Some("sg-1")),
            ("CreditSpecification.CpuCredits", None),
        ],
    );
}

#[tokio::test]
async fn an_image_is_the_newest_of_a_pattern_or_a_templates() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeImages" => {
            let image = |id: &str, month: u8| {
                format!(
                    "<item><imageId>{id}</imageId><creationDate>2026-{month:02}-01T00:00:00.000Z</creationDate>\
                     <rootDeviceName>/dev/sda1</rootDeviceName></item>"
                )
            };
            let all = [image("ami-old", 3), image("ami-new", 11), image("ami-older", 2)];
            ok(asked, &format!("<imagesSet>{}</imagesSet>", all.concat()))
        }
        _ => forgetful(asked),
    })
    .await;
    let named = |n, image: &str| {
        let mut target = target(n);
        Arc::make_mut(&mut target.spec).workload.vm_image = Some(image.to_owned());
        target
    };
    let mut by_subnet = config();
    by_subnet.public_address = None;
    let backend = server.backend(by_subnet);
    backend.create(&cx(), &named(1, "self/product-*")).await.unwrap();
    let asked = server.asked();
    let images = asked.iter().find(|asked| asked.action == "DescribeImages").unwrap();
    for (name, value) in
        [("Owner.1", "self"), ("Filter.1.Name", "name"), ("Filter.1.Value.1", "product-*"), ("Filter.2.Name", "state")]
    {
        assert_eq!(images.parameters.get(name).map(String::as_str), Some(value), "{name}");
    }
    let run = asked.iter().find(|asked| asked.action == "RunInstances").unwrap();
    assert_eq!(run.parameters["ImageId"], "ami-new");
    assert_eq!(run.parameters["BlockDeviceMapping.1.DeviceName"], "/dev/sda1");

    // A template has its own root, and perhaps groups, with which a network interface in the request does not go.
    backend.create(&cx(), &named(2, "lt-1:3")).await.unwrap();
    let asked = server.asked();
    let run = asked.iter().find(|asked| asked.action == "RunInstances").unwrap();
    for (name, value) in [
        ("LaunchTemplate.LaunchTemplateId", Some("lt-1")),
        ("LaunchTemplate.Version", Some("3")),
        ("ImageId", None),
        ("SubnetId", Some("subnet-a")),
        ("NetworkInterface.1.SubnetId", None),
        ("BlockDeviceMapping.1.DeviceName", Some("/dev/sdf")),
    ] {
        assert_eq!(run.parameters.get(name).map(String::as_str), value, "{name}");
    }
}

#[tokio::test]
async fn every_page_is_asked_for() {
    let server = Server::start(|asked| {
        let page = match asked.parameters.get("NextToken").map(String::as_str) {
            None => 1,
            Some("2") => 2,
            other => panic!("{other:?}"),
        };
        let machine = |n| Thing::machine(&target(n), "running").with("volume", "vol-1");
        let (status, body) = match asked.action.as_str() {
            "DescribeInstances" => machines(asked, &[machine(page), machine(page + 2)]),
            "DescribeVolumes" => {
                let other = Target { incarnation: Incarnation::new(9, page), ..target(page) };
                volumes(asked, &[Thing::volume(&other, page as u32)])
            }
            _ => empty(asked),
        };
        let next = "<nextToken>2</nextToken>";
        let is_first = page == 1 && asked.action != "DescribeInstanceStatus";
        let end = format!("</{}Response>", asked.action);
        (status, if is_first { body.replace(&end, &format!("{next}{end}")) } else { body })
    })
    .await;
    let backend = server.backend(config());
    let listed: Vec<_> = futures::StreamExt::collect::<Vec<_>>(backend.list(&cx())).await;
    let listed: Vec<_> = listed.into_iter().map(|owned| owned.unwrap().incarnation.to_string()).collect();
    assert_eq!(listed.len(), 4 + 2, "{listed:?}");
    let looks: Vec<_> = (1..=4).map(target).collect();
    for seen in backend.observe_many(&cx(), &looks).await {
        assert_eq!(seen.unwrap().phase(), Some(Phase::Provisioning));
    }
}

#[tokio::test]
async fn one_bad_machine_of_a_hundred_costs_few_requests() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeInstances" => {
            let all: Vec<_> = (1..=100).map(|n| Thing::machine(&target(n), "running")).collect();
            machines(asked, &all)
        }
        "StopInstances" if asked.parameters.values().any(|value| value == "i-7") => {
            refusal(400, "IncorrectInstanceState")
        }
        _ => empty(asked),
    })
    .await;
    // As many as the service takes by default.
    let backend = server.backend(config());
    let targets: Vec<_> = (1..=100).map(target).collect();
    let (cx, backend) = (&cx(), &backend);
    let stopped = futures::future::join_all(targets.iter().map(|target| backend.scale_to_zero(cx, target))).await;
    assert_eq!(stopped.iter().filter(|stopped| stopped.is_err()).count(), 1);
    let asked = actions(&server.asked(), "StopInstances");
    assert!(asked <= 2 * 8 + 2, "{asked} requests");
}

/// Reads what is asked, and hangs up.
#[tokio::test]
async fn a_connection_that_is_cut_leaves_the_effect_in_doubt() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Server::at(format!("http://{}", listener.local_addr().unwrap())).backend(config());
    let service = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut piece = [0; 65_536];
                loop {
                    let read = stream.read(&mut piece).await.unwrap();
                    request.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    if read == 0 || text.contains("Action=RunInstances") {
                        return;
                    }
                    let Some((_, action)) = text.split_once("Action=") else { continue };
                    let action = action.split('&').next().unwrap().to_owned();
                    let asked = Asked { action, parameters: std::collections::BTreeMap::new() };
                    let (_, body) = empty(&asked);
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all((head + &body).as_bytes()).await.unwrap();
                    request.clear();
                }
            });
        }
    });
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    assert_ne!(error.retry(), Retry::Never);
    service.abort();
}
