//! What a machine is asked for with, where, and what becomes of that.

use super::*;

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
