//! The stand itself: that it does what the real service does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    pin::Pin,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use libtest_mimic::{Arguments, Completion, Trial};
use test_ec2::{Bucket, Buckets, Ec2, Lasting, Once, Options, Seen, State, missing};

const TAG: (&str, &str) = ("owner", "test");
const PORT: u16 = 7070;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

const TRIALS: [Test; 6] = [
    ("the_same_token_is_the_same_machine", || Box::pin(the_same_token_is_the_same_machine())),
    ("machines_take_their_time_and_refuse_what_they_cannot_do", || {
        Box::pin(machines_take_their_time_and_refuse_what_they_cannot_do())
    }),
    ("a_machine_boots_and_its_data_outlives_it", || Box::pin(a_machine_boots_and_its_data_outlives_it())),
    ("reads_lag_behind_writes", || Box::pin(reads_lag_behind_writes())),
    ("faults_befall_requests_and_end", || Box::pin(faults_befall_requests_and_end())),
    ("pages_show_everything_once_and_other_services_answer", || {
        Box::pin(pages_show_everything_once_and_other_services_answer())
    }),
];

fn main() {
    libtest_mimic::run(&Arguments::from_args(), TRIALS.map(trial).into()).exit();
}

fn trial((name, test): Test) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing()? {
            return Ok(Completion::ignored_with(reason));
        }
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test());
        Ok(Completion::Completed)
    })
}

async fn stand(options: Options) -> Ec2 {
    Ec2::start(options).await.unwrap()
}

fn without_boots() -> Options {
    Options { boots: false, ..Options::default() }
}

/// Sends a request to the proxy. Gives the status and the body; nothing, when there is no answer.
async fn ask(ec2: &Ec2, action: &str, parameters: &[(&str, &str)]) -> Option<(u16, String)> {
    let all = [("Action", action), ("Version", "2016-11-15")].into_iter().chain(parameters.iter().copied());
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(all).finish();
    let request = reqwest::Client::builder().no_proxy().build().unwrap().post(ec2.endpoint());
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
    let response = request.send().await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

async fn done(ec2: &Ec2, action: &str, parameters: &[(&str, &str)]) -> String {
    let (status, body) = ask(ec2, action, parameters).await.unwrap();
    assert_eq!(status, 200, "{action}: {body}");
    body
}

/// The status and the code of a refusal.
async fn refused(ec2: &Ec2, action: &str, parameters: &[(&str, &str)]) -> (u16, String) {
    let (status, body) = ask(ec2, action, parameters).await.unwrap();
    assert!(status >= 400, "{action}: {body}");
    (status, text(&body, "Code"))
}

/// The text of the first element of this name.
fn text(body: &str, name: &str) -> String {
    let after = body.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {body}")).1;
    after.split_once('<').unwrap().0.to_owned()
}

/// A launch in one subnet, with more.
async fn launch(ec2: &Ec2, more: &[(&str, &str)]) -> (u16, String) {
    let image = ec2.image().await;
    let subnet = ec2.subnets()[0].0.clone();
    let mut parameters = vec![
        ("ImageId", &*image),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("InstanceType", "t3.micro"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", TAG.0),
        ("TagSpecification.1.Tag.1.Value", TAG.1),
    ];
    parameters.extend_from_slice(more);
    if !more.iter().any(|(name, _)| *name == "SubnetId") {
        parameters.push(("SubnetId", &subnet));
    }
    ask(ec2, "RunInstances", &parameters).await.unwrap()
}

async fn launched(ec2: &Ec2, more: &[(&str, &str)]) -> String {
    let (status, body) = launch(ec2, more).await;
    assert_eq!(status, 200, "{body}");
    text(&body, "instanceId")
}

const DISK: [(&str, &str); 9] = [
    ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
    ("BlockDeviceMapping.1.Ebs.VolumeSize", "3"),
    ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
    ("BlockDeviceMapping.1.Ebs.Encrypted", "true"),
    ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "false"),
    ("TagSpecification.2.ResourceType", "volume"),
    ("TagSpecification.2.Tag.1.Key", "disk"),
    ("TagSpecification.2.Tag.1.Value", "of a test"),
    ("MetadataOptions.HttpTokens", "required"),
];

async fn machine(ec2: &Ec2, id: &str) -> Seen {
    ec2.machines(TAG).await.into_iter().find(|machine| machine.id == id).unwrap()
}

async fn until_state(ec2: &Ec2, id: &str, state: State) {
    until(ec2, id, &format!("{state}"), async || machine(ec2, id).await.state == state).await;
}

async fn until(ec2: &Ec2, id: &str, what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{id} is not {what}: {:?}\n{}", machine(ec2, id).await, ec2.console(id));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// User data of a product that counts its starts on its disk, and tells how often it was started.
fn user_data(may_format: bool) -> String {
    let format = if may_format { "mkfs.ext4 -q $volume" } else { "exit 1" };
    let script = format!(
        r#"#cloud-boothook
#!/bin/sh
set -eu
home="$PROVISIONER_ROOT/etc/provisioner"
mkdir -p "$home" "$PROVISIONER_ROOT/etc/systemd/system"
cat > "$home/start" <<'END'
set -eu
data="$PROVISIONER_ROOT/data"
if ! mountpoint -q "$data"; then
    disk() {{ lsblk -dnro NAME,TYPE,MODEL | awk '$1 != "nvme0n1" {{ print "/dev/" $1 }}'; }}
    until [ -n "$(disk)" ]; do sleep 0.05; done
    volume="$(disk)"
    if [ -z "$(blkid -o value -s TYPE "$volume" || true)" ]; then {format}; fi
    mkdir -p "$data"
    mount "$volume" "$data"
fi
export SECRET="$(aws ssm get-parameter --with-decryption --name /a/b --query Parameter.Value --output text)"
echo start >> "$data/starts"
sleep 1000 &
echo $! > "$data/child"
cd "$data"
exec python3 -m http.server --bind "$ADDRESS" {PORT}
END
echo TimeoutStopSec=5 > "$PROVISIONER_ROOT/etc/systemd/system/product.service"
systemctl daemon-reload
systemctl start --no-block product.service
"#
    );
    BASE64_STANDARD.encode(script)
}

/// How often the product of a machine was started, as it tells.
fn starts(address: IpAddr) -> Option<usize> {
    Some(fetch(address, "starts")?.lines().filter(|line| *line == "start").count())
}

/// A file on the disk of a machine, as its product tells.
fn fetch(address: IpAddr, file: &str) -> Option<String> {
    let time = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), time).ok()?;
    stream.set_read_timeout(Some(time)).ok()?;
    write!(stream, "GET /{file} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

async fn until_started(ec2: &Ec2, id: &str, times: usize) {
    let address = machine(ec2, id).await.address;
    until(ec2, id, "started so often", async || starts(address) == Some(times)).await;
}

async fn the_same_token_is_the_same_machine() {
    let ec2 = stand(without_boots()).await;
    let token = [("ClientToken", "one")];
    let (a, b) = futures::join!(launched(&ec2, &token), launched(&ec2, &token));
    assert_eq!(a, b);
    ec2.once("RunInstances", Once::LostAfter);
    let image = ec2.image().await;
    let lost = [("ImageId", &*image), ("MinCount", "1"), ("MaxCount", "1"), ("ClientToken", "two")];
    assert_eq!(ask(&ec2, "RunInstances", &lost).await, None);
    let found = text(&done(&ec2, "RunInstances", &lost).await, "instanceId");
    assert_ne!(found, a);
    let other = launch(&ec2, &[("ClientToken", "one"), ("EbsOptimized", "true")]).await;
    assert_eq!((other.0, text(&other.1, "Code")), (400, "IdempotentParameterMismatch".to_owned()));
    // In another zone it is another machine.
    let subnet = ec2.subnets()[1].0.clone();
    assert_ne!(launched(&ec2, &[("ClientToken", "one"), ("SubnetId", &subnet)]).await, a);
    assert_eq!(ec2.machines(TAG).await.len(), 2);
    // It stays so after the end of the machine.
    until_state(&ec2, &a, State::Running).await;
    done(&ec2, "TerminateInstances", &[("InstanceId.1", &a)]).await;
    until_state(&ec2, &a, State::Terminated).await;
    let (_, body) = launch(&ec2, &token).await;
    assert_eq!((text(&body, "instanceId"), text(&body, "name")), (a, "terminated".to_owned()));
}

async fn machines_take_their_time_and_refuse_what_they_cannot_do() {
    // The few requests that find a machine on its way come within it, also on a busy machine.
    let time = Duration::from_secs(2);
    let options = Options { start: time, stop: time, terminate: time, checks: time, ..without_boots() };
    let ec2 = stand(options).await;
    let id = launched(&ec2, &DISK).await;
    let ids = [("InstanceId.1", &*id)];
    let incorrect = (400, "IncorrectInstanceState".to_owned());
    assert_eq!(machine(&ec2, &id).await.state, State::Pending);
    assert_eq!(refused(&ec2, "StopInstances", &ids).await, incorrect);
    done(&ec2, "StartInstances", &ids).await;
    until_state(&ec2, &id, State::Running).await;
    let status = done(&ec2, "DescribeInstanceStatus", &ids).await;
    assert!(status.contains("<status>initializing</status>"), "{status}");
    let kind = [("InstanceId", &*id), ("InstanceType.Value", "t3.large")];
    assert_eq!(refused(&ec2, "ModifyInstanceAttribute", &kind).await, incorrect);
    done(&ec2, "StopInstances", &ids).await;
    assert_eq!(refused(&ec2, "StartInstances", &ids).await, incorrect);
    until_state(&ec2, &id, State::Stopped).await;
    done(&ec2, "ModifyInstanceAttribute", &kind).await;
    done(&ec2, "ModifyInstanceAttribute", &[("InstanceId", &*id), ("UserData.Value", "bmV3")]).await;
    let read = done(&ec2, "DescribeInstanceAttribute", &[("InstanceId", &*id), ("Attribute", "userData")]).await;
    assert_eq!(text(&read, "value"), "bmV3");
    assert_eq!(ec2.search("new").await, [format!("the user data of machine {id}")]);
    done(&ec2, "StartInstances", &ids).await;
    until_state(&ec2, &id, State::Running).await;
    assert_eq!(machine(&ec2, &id).await.kind, "t3.large");

    let volume = machine(&ec2, &id).await.volumes.remove(0);
    let in_use = (400, "VolumeInUse".to_owned());
    let attach = [("VolumeId", &*volume), ("InstanceId", &*id), ("Device", "/dev/sdg")];
    assert_eq!(refused(&ec2, "AttachVolume", &attach).await, in_use);
    let protect = |value| [("InstanceId", &*id), ("DisableApiTermination.Value", value)];
    done(&ec2, "ModifyInstanceAttribute", &protect("true")).await;
    let protected = refused(&ec2, "TerminateInstances", &ids).await;
    assert_eq!(protected, (400, "OperationNotPermitted".to_owned()));
    done(&ec2, "ModifyInstanceAttribute", &protect("false")).await;
    let unknown = [("InstanceId.1", &*id), ("InstanceId.2", "i-0123456789abcdef0")];
    assert_eq!(refused(&ec2, "TerminateInstances", &unknown).await, (400, "InvalidInstanceID.NotFound".to_owned()));
    done(&ec2, "TerminateInstances", &ids).await;
    assert_eq!(machine(&ec2, &id).await.state, State::ShuttingDown);
    assert_eq!(refused(&ec2, "DeleteVolume", &[("VolumeId", &volume)]).await, in_use);
    assert_eq!(refused(&ec2, "StartInstances", &ids).await, incorrect);
    let terminated = [("Filter.1.Name", "instance-state-name"), ("Filter.1.Value.1", "terminated")];
    assert!(!done(&ec2, "DescribeInstances", &terminated).await.contains(&id));
    until_state(&ec2, &id, State::Terminated).await;
    assert!(done(&ec2, "DescribeInstances", &terminated).await.contains(&id));
    assert!(done(&ec2, "DescribeNetworkInterfaces", &[]).await.contains("<networkInterfaceSet></networkInterfaceSet>"));
    let elsewhere = launched(&ec2, &[("SubnetId", &*ec2.subnets()[1].0)]).await;
    let attach = [("VolumeId", &*volume), ("InstanceId", &*elsewhere), ("Device", "/dev/sdf")];
    assert_eq!(refused(&ec2, "AttachVolume", &attach).await, incorrect);
    until_state(&ec2, &elsewhere, State::Running).await;
    let mismatch = (400, "InvalidVolume.ZoneMismatch".to_owned());
    assert_eq!(refused(&ec2, "AttachVolume", &attach).await, mismatch);
    done(&ec2, "DeleteVolume", &[("VolumeId", &volume)]).await;
    let volumes = done(&ec2, "DescribeVolumes", &[]).await;
    assert_eq!(volumes.matches("<attachmentSet>").count(), 1, "{volumes}");
    ec2.impair(&elsewhere, true).unwrap();
    ec2.retire(&elsewhere, "2099-01-01T00:00:00.000Z").unwrap();
    let status = done(&ec2, "DescribeInstanceStatus", &[]).await;
    assert!(status.contains("impaired") && status.contains("instance-retirement"), "{status}");
}

async fn a_machine_boots_and_its_data_outlives_it() {
    let ec2 = stand(Options::default()).await;
    ec2.set_secret("ssm", "/a/b", "it's secret");
    let fresh = user_data(true);
    let id = launched(&ec2, &[&DISK[..], &[("UserData", &*fresh)]].concat()).await;
    until_started(&ec2, &id, 1).await;
    assert_eq!(ec2.environment(&id).unwrap()["SECRET"], "it's secret");
    assert_eq!(ec2.search("http.server").await, [format!("the user data of machine {id}")]);
    let image = ec2.image().await;
    assert!(ec2.call("DescribeImages", &[("ImageId.1", &image)]).await.unwrap().contains(&image));
    ec2.kill_product(&id).unwrap();
    until_started(&ec2, &id, 2).await;
    let first = machine(&ec2, &id).await;
    ec2.stop_behind(&id).await.unwrap();
    until_state(&ec2, &id, State::Stopped).await;
    assert_eq!(starts(first.address), None);
    done(&ec2, "StartInstances", &[("InstanceId.1", &id)]).await;
    until_started(&ec2, &id, 3).await;
    assert_eq!(machine(&ec2, &id).await.address, first.address);
    done(&ec2, "TerminateInstances", &[("InstanceId.1", &id)]).await;
    until_state(&ec2, &id, State::Terminated).await;
    assert_eq!(starts(first.address), None);

    // The next one waits for the disk, and does not format it.
    let next = launched(&ec2, &[("UserData", &*user_data(false))]).await;
    until_state(&ec2, &next, State::Running).await;
    let volume = &first.volumes[0];
    done(&ec2, "AttachVolume", &[("VolumeId", volume), ("InstanceId", &next), ("Device", "/dev/sdf")]).await;
    until_started(&ec2, &next, 4).await;
    assert_ne!(machine(&ec2, &next).await.address, first.address);
    assert_eq!(ec2.left(TAG).await, [format!("machine {next} (running)")]);
    let child = fetch(machine(&ec2, &next).await.address, "child").unwrap();
    ec2.delete_volume_behind(volume).await.unwrap();
    assert_eq!(machine(&ec2, &next).await.volumes, [""; 0]);
    let address = machine(&ec2, &next).await.address;
    drop(ec2);
    assert_eq!(starts(address), None);
    // What the product has left is gone, too; a process that has ended has no command line.
    let command = std::fs::read(format!("/proc/{}/cmdline", child.trim())).unwrap_or_default();
    assert_eq!(command, b"");
}

async fn reads_lag_behind_writes() {
    let lag = Duration::from_millis(1500);
    let ec2 = stand(Options { lag, ..without_boots() }).await;
    let id = launched(&ec2, &[]).await;
    let ids = [("InstanceId.1", &*id)];
    let missing = (400, "InvalidInstanceID.NotFound".to_owned());
    assert_eq!(refused(&ec2, "DescribeInstances", &ids).await, missing);
    assert_eq!(refused(&ec2, "TerminateInstances", &ids).await, missing);
    assert!(!done(&ec2, "DescribeInstances", &[]).await.contains(&id));
    until(&ec2, &id, "shown", async || done(&ec2, "DescribeInstances", &[]).await.contains(&id)).await;
    until(&ec2, &id, "shown as running", async || done(&ec2, "DescribeInstances", &ids).await.contains("running"))
        .await;
    let tag = [("ResourceId.1", &*id), ("Tag.1.Key", "new"), ("Tag.1.Value", "tag")];
    done(&ec2, "CreateTags", &tag).await;
    done(&ec2, "StopInstances", &ids).await;
    let shown = done(&ec2, "DescribeInstances", &ids).await;
    assert!(shown.contains("<name>running</name>") && !shown.contains("<key>new</key>"), "{shown}");
    until(&ec2, &id, "shown with its tag", async || {
        done(&ec2, "DescribeInstances", &ids).await.contains("<key>new</key>")
    })
    .await;
    until(&ec2, &id, "shown as stopped", async || done(&ec2, "DescribeInstances", &ids).await.contains("stopped"))
        .await;
}

async fn faults_befall_requests_and_end() {
    let buckets = Some(Buckets { launches: Bucket::new(5.0, 0.1), ..Buckets::default() });
    let ec2 = stand(Options { quota: Some(3), buckets, ..without_boots() }).await;
    let zones = ec2.subnets();
    ec2.befall(Some(Lasting::NoCapacityIn(vec![zones[0].1.clone()])));
    let (status, body) = launch(&ec2, &[]).await;
    assert_eq!((status, text(&body, "Code")), (500, "InsufficientInstanceCapacity".to_owned()));
    launched(&ec2, &[("SubnetId", &*zones[1].0)]).await;
    let all = [("MaxResults", "5")];
    for (fault, code) in [
        (Lasting::Throttled, (503, "RequestLimitExceeded".to_owned())),
        (Lasting::Rights, (403, "UnauthorizedOperation".to_owned())),
    ] {
        ec2.befall(Some(fault));
        assert_eq!(refused(&ec2, "DescribeInstances", &all).await, code);
    }
    ec2.befall(Some(Lasting::Unreachable));
    let before = ec2.calls();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ask(&ec2, "DescribeInstances", &all).await, None);
    assert_eq!(ec2.calls(), before, "the port is shut");
    ec2.befall(None);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask(&ec2, "DescribeInstances", &all).await.is_none() {
        assert!(Instant::now() < deadline, "it is not reachable again");
    }
    ec2.befall(Some(Lasting::Hang));
    let hang = ask(&ec2, "DescribeInstances", &all);
    assert!(tokio::time::timeout(Duration::from_millis(100), hang).await.is_err());
    ec2.befall(None);

    ec2.once("DescribeInstances", Once::LostBefore);
    ec2.once("DescribeInstances", Once::Html500);
    ec2.once("DescribeInstances", Once::MalformedXml);
    ec2.once("DescribeInstances", Once::BeforeSend { status: 418, code: "A".to_owned(), message: "b".to_owned() });
    assert_eq!(ask(&ec2, "DescribeInstances", &all).await, None);
    assert!(ask(&ec2, "DescribeInstances", &all).await.unwrap().1.contains("<html>"));
    assert!(!ask(&ec2, "DescribeInstances", &all).await.unwrap().1.contains("</"));
    assert_eq!(refused(&ec2, "DescribeInstances", &all).await, (418, "A".to_owned()));
    let unknown = [("Filter.1.Name", "no-such"), ("Filter.1.Value.1", "x")];
    assert_eq!(refused(&ec2, "DescribeInstances", &unknown).await.0, 400);

    for _ in 0..2 {
        launched(&ec2, &[]).await;
    }
    let (status, body) = launch(&ec2, &[]).await;
    assert_eq!((status, text(&body, "Code")), (400, "VcpuLimitExceeded".to_owned()));
    let mut throttled = 0;
    for _ in 0..5 {
        throttled += usize::from(launch(&ec2, &[]).await.0 == 503);
    }
    assert!(throttled > 0);
}

async fn pages_show_everything_once_and_other_services_answer() {
    let ec2 = stand(without_boots()).await;
    for _ in 0..7 {
        launched(&ec2, &[]).await;
    }
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let mut parameters = vec![("MaxResults", "3"), ("Filter.1.Name", "tag:owner"), ("Filter.1.Value.1", "test")];
        if !token.is_empty() {
            parameters.push(("NextToken", &token));
        }
        let page = done(&ec2, "DescribeInstances", &parameters).await;
        seen.extend(page.split("<instanceId>").skip(1).map(|rest| rest.split_once('<').unwrap().0.to_owned()));
        match page.contains("<nextToken>") {
            true => token = text(&page, "nextToken"),
            false => break,
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 7);
    assert_eq!(refused(&ec2, "DescribeInstances", &[("NextToken", "x")]).await.1, "InvalidNextToken");
    assert_eq!(ec2.calls_by_action()["RunInstances"], 7);
    // What is not EC2 passes through.
    let request = reqwest::Client::builder().no_proxy().build().unwrap().post(ec2.endpoint());
    let scope = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0";
    let request = request.header("authorization", scope).header("content-type", "application/x-www-form-urlencoded");
    let response = request.body("Action=GetCallerIdentity&Version=2011-06-15").send().await.unwrap();
    assert_eq!(text(&response.text().await.unwrap(), "Account"), "123456789012");
    assert_eq!(ec2.calls_by_action()["GetCallerIdentity"], 1);
}
