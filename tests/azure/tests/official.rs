//! That the stand-in is what it stands in for: Microsoft's clients take a site through its life on it, and Microsoft's
//! validator finds every call of theirs, and every answer, as Microsoft's contract has it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::Value;
use test_azure::{Azure, Options, Style};
use tokio::process::Command;

/// The version of the contract that is here.
const VERSION: &str = "2024-04-01";
/// How long a script may take on a busy machine.
const SCRIPT_MAX: Duration = Duration::from_secs(240);
/// An operation takes longer than a client waits before it asks again.
const WORK: Duration = Duration::from_millis(1500);

/// Where `cargo xtask peers` makes them.
const PEERS: &str = "/var/tmp/provisioner-peers";
const PYTHON: &str = "azure-clients";
const JAVASCRIPT: &str = "oav";

const STYLES: [(&str, Style); 4] = [
    ("at_once", Style::Immediate),
    ("by_a_header_with_the_state", Style::AsyncOperation),
    ("by_a_header_with_the_result", Style::Location),
    ("by_the_resource_itself", Style::ProvisioningState),
];

/// What a life consists of, as the contract calls it, with the status of each.
const LIFE: [&str; 19] = [
    "AppServicePlans_CreateOrUpdate 20",
    "AppServicePlans_Delete 200",
    "AppServicePlans_Delete 204",
    "AppServicePlans_Get 200",
    "AppServicePlans_Get 404",
    "AppServicePlans_ListByResourceGroup 200",
    "WebApps_CreateOrUpdate 20",
    "WebApps_Delete 200",
    "WebApps_Get 200",
    "WebApps_Get 404",
    "WebApps_GetConfiguration 200",
    "WebApps_ListApplicationSettings 200",
    "WebApps_ListByResourceGroup 200",
    "WebApps_ListHostNameBindings 200",
    "WebApps_Restart 200",
    "WebApps_Start 200",
    "WebApps_Stop 200",
    "WebApps_UpdateApplicationSettings 200",
    " calls validated, 0 errors",
];

const CLUSTER: &str = "every-cluster";
/// What the stand-in does not do, as nobody here asks for it, or not with that answer: polls are answered by 200.
const LACKING: [&str; 11] = [
    "AgentPools_List",
    "AgentPools_Get",
    "AgentPools_CreateOrUpdate",
    "AgentPools_Delete",
    "AppServicePlans_GetServerFarmSkus",
    "Global_GetSubscriptionOperationWithAsyncResponse",
    "ListSkus",
    "Validate",
    "WebApps_UpdateConnectionStrings",
    "WebApps_ListConnectionStrings",
    "WebApps_ListSlotConfigurationNames",
];

fn main() {
    let mut trials = vec![trial("the_validator_finds_what_is_wrong".to_owned(), &[JAVASCRIPT], || {
        Box::pin(the_validator_finds_what_is_wrong())
    })];
    trials.push(trial("every_operation_is_as_in_the_contract".to_owned(), &[PYTHON, JAVASCRIPT], || {
        Box::pin(every_operation_is_as_in_the_contract())
    }));
    for (name, style) in STYLES {
        trials.push(trial(format!("python_with_writes_that_end::{name}"), &[PYTHON, JAVASCRIPT], move || {
            Box::pin(a_life(style, python("life.py")))
        }));
        trials.push(trial(format!("javascript_with_writes_that_end::{name}"), &[JAVASCRIPT], move || {
            Box::pin(a_life(style, node("life.mjs")))
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

type Running = std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn trial(name: String, peers: &'static [&'static str], test: impl FnOnce() -> Running + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing(peers)? {
            return Ok(Completion::ignored_with(reason));
        }
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test());
        Ok(Completion::Completed)
    })
}

/// Why a test that needs these is ignored. `None`: they are here.
///
/// # Errors
/// When a run without one does not count, as `REQUIRED_PEERS` names it.
fn missing(peers: &[&str]) -> Result<Option<String>, Failed> {
    let required = std::env::var("REQUIRED_PEERS").unwrap_or_default();
    let mut missing = peers.iter().filter(|peer| !Path::new(PEERS).join(peer).join("made-of.txt").exists()).peekable();
    let first = missing.peek().map(|peer| format!("{peer} is not here: cargo xtask peers prepares it"));
    match missing.find(|peer| required.split(',').any(|required| required.trim() == **peer)) {
        Some(peer) => Err(format!("{peer} is required, and is not here: cargo xtask peers prepares it").into()),
        None => Ok(first),
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("official").join(name)
}

fn python(name: &str) -> Command {
    command(&Path::new(PEERS).join(PYTHON).join("bin/python"), name)
}

fn node(name: &str) -> Command {
    command(Path::new("node"), name)
}

/// A script, with nothing of this environment.
fn command(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("AZURE_JS", Path::new(PEERS).join(JAVASCRIPT));
    command.arg(script(name)).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> Output {
    tokio::time::timeout(SCRIPT_MAX, command.output()).await.expect("it ends in time").unwrap()
}

async fn validated(record: &Path) -> Output {
    let mut validator = node("validate.mjs");
    validator.arg(record);
    run(validator).await
}

/// What a script printed.
fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs a client on a stand-in. Its calls have to succeed.
async fn drive(azure: &Azure, mut client: Command, more: &[&str]) {
    client.arg(azure.endpoint()).arg(azure.ca_file()).arg(azure.token()).arg(azure.subscription());
    client.arg(azure.resource_group()).arg(azure.region()).arg(benches::product()).arg(VERSION).args(more);
    let output = run(client).await;
    println!("{}", printed(&output));
    assert!(output.status.success(), "{}", output.status);
}

/// Has a recording validated. Gives what is printed of it.
async fn valid(record: &Path) -> String {
    let output = validated(record).await;
    let text = printed(&output);
    println!("{text}");
    assert!(output.status.success(), "{}", output.status);
    text
}

async fn a_life(style: Style, mut client: Command) {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("calls.jsonl");
    let options =
        Options { style, work: WORK, retry_after: Some(1), record: Some(record.clone()), ..Options::default() };
    let azure = Azure::start(options).await.unwrap();
    client.env("TMPDIR", folder.path());
    drive(&azure, client, &[]).await;
    ends_in_style(style, &record);
    let text = valid(&record).await;
    for part in LIFE {
        assert!(text.contains(part), "no {part:?}");
    }
}

/// A life, and then every other operation: each of the contract succeeds at least once, but for those that the stand-in lacks.
async fn every_operation_is_as_in_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("calls.jsonl");
    // With a page for each thing, the client has to find the next one.
    let options = Options { style: Style::Immediate, page: 1, record: Some(record.clone()), ..Options::default() };
    let azure = Azure::start(options).await.unwrap();
    azure.add_cluster(CLUSTER, "apiVersion: v1".to_owned());
    let mut life = python("life.py");
    life.env("TMPDIR", folder.path());
    drive(&azure, life, &[]).await;
    drive(&azure, python("every.py"), &[azure.storage_account(), CLUSTER]).await;
    let text = valid(&record).await;
    let index = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("contract/operations.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let operations = index["operations"].as_array().unwrap().iter().map(|it| it["operationId"].as_str().unwrap());
    let missing = operations.filter(|id| !text.contains(&format!(" {id} 20")));
    assert_eq!(missing.collect::<Vec<_>>(), LACKING);
}

/// Whether the writes ended as they were to, so that the clients have met each way of it.
fn ends_in_style(style: Style, record: &Path) {
    let calls: Vec<Value> =
        fs::read_to_string(record).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let url = |call: &Value| call["liveRequest"]["url"].as_str().unwrap().to_lowercase();
    let is_plan = |call: &&Value| call["liveRequest"]["method"] == "PUT" && url(call).contains("/serverfarms/");
    let answer = &calls.iter().find(is_plan).unwrap()["liveResponse"];
    let has = |name: &str| answer["headers"].as_object().unwrap().keys().any(|key| key.eq_ignore_ascii_case(name));
    let (state, result) = (has("azure-asyncoperation"), has("location"));
    let is_ready = answer["body"]["properties"]["provisioningState"] == "Succeeded";
    let is_poll = |call: &&Value| ["/operations/", "/operationresults/"].iter().any(|part| url(call).contains(part));
    let polls = calls.iter().filter(is_poll).count();
    let is_so = match style {
        Style::Immediate => !state && !result && is_ready && polls == 0,
        Style::AsyncOperation => state && polls > 2,
        Style::Location => !state && result && polls > 2,
        Style::ProvisioningState => !state && !result && !is_ready && polls == 0,
    };
    assert!(is_so, "{polls} polls: {answer}");
}

/// Each line of a file has a call with one thing wrong, and the code by which the validator is to tell it.
async fn the_validator_finds_what_is_wrong() {
    let file = script("wrong.jsonl");
    let output = validated(&file).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let told: Vec<_> = text.lines().collect();
    for (index, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
        let call: Value = serde_json::from_str(line).unwrap();
        let (place, code) = (format!("error: {}:{}: ", file.display(), index + 1), call["expect"].as_str().unwrap());
        let found: Vec<_> = told.windows(2).filter(|pair| pair[0].starts_with(&place)).map(|pair| pair[1]).collect();
        assert!(!found.is_empty() && found.iter().all(|error| error.contains(code)), "{}: {text}", call["operation"]);
    }
    // With nothing to validate it does not say that all is well.
    let nothing = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(validated(nothing.path()).await.status.code(), Some(1));
}
