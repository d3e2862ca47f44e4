//! The page in a real browser: headless Chromium, driven through chromedriver.
//!
//! Where either is missing, the tests show as ignored with the reason; with `REQUIRED_PEERS` naming `chromium`, they fail
//! instead. With `SCREENSHOTS` naming a folder, they leave pictures of the page there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use libtest_mimic::{Arguments, Completion, Trial};
use serde_json::{Value, json};
use support::{PATIENCE, Signup, State, kill_all_mentioning};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

fn main() {
    // Chromium takes a core to itself, so one after the other.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = vec![
        trial("a_company_signs_up_and_is_looked_after", async |browser| look_after(browser).await),
        trial("what_went_wrong_is_told_and_names_are_only_text", async |browser| go_wrong(browser).await),
        trial("a_fleet_is_searched_and_paged", async |browser| search(browser).await),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test in a browser of its own.
fn trial(name: &'static str, test: impl AsyncFnOnce(&Browser) + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        let programs = match (program("chromium"), program("chromedriver")) {
            (Some(chromium), Some(driver)) => (chromium, driver),
            (chromium, _) => {
                let missing = if chromium.is_some() { "chromedriver" } else { "chromium" };
                let required = std::env::var("REQUIRED_PEERS").unwrap_or_default();
                if required.split(',').any(|peer| peer.trim() == "chromium") {
                    return Err(format!("{missing} is required and neither on PATH nor in /usr/bin").into());
                }
                return Ok(Completion::ignored_with(format!("{missing} is neither on PATH nor in /usr/bin")));
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let browser = Browser::start(&programs.0, &programs.1).await;
            test(&browser).await;
            browser.close().await;
        });
        Ok(Completion::Completed)
    })
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A browser with a profile of its own. Ended when dropped.
struct Browser {
    client: Client,
    driver: Child,
    profile: TempDir,
}

impl Browser {
    async fn start(chromium: &Path, driver: &Path) -> Self {
        let profile = tempfile::Builder::new().prefix("signup-browser-").tempdir().unwrap();
        let mut driver = Command::new(driver)
            // Any free port; it says which.
            .arg("--port=0")
            // Whatever Chromium starts can be found by this afterwards.
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromedriver ended");
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse::<u16>().unwrap();
                }
            }
        });
        let port = port.await.expect("chromedriver did not start");
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,1400",
            &format!("--user-data-dir={}", profile.path().join("profile").display()),
        ];
        let options = json!({"binary": chromium, "args": arguments});
        let log = json!({"browser": "ALL"});
        let capabilities = [("goog:chromeOptions".to_owned(), options), ("goog:loggingPrefs".to_owned(), log)];
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.into_iter().collect())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        Self { client, driver, profile }
    }

    async fn close(mut self) {
        let _ = self.client.clone().close().await;
        let _ = self.driver.kill().await;
    }

    /// Waits for an element that is shown, and clicks it.
    async fn click(&self, css: &str) {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("no {css}: {error}")).click().await.unwrap();
    }

    async fn type_into(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.textContent ?? ''";
        let text = self.client.execute(script, vec![json!(css)]).await.unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an element's text contains this; the text.
    async fn until(&self, css: &str, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text(css).await;
            if text.contains(part) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "{css} says {text:?}, not {part:?}; the page said {:?}",
                self.said().await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until there is no such element.
    async fn until_gone(&self, css: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.client.find_all(Locator::Css(css)).await.unwrap().is_empty() {
            assert!(Instant::now() < deadline, "{css} is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The page's messages.
    async fn said(&self) -> Value {
        let script = "return [...document.querySelectorAll('.message')].map((place) => place.textContent)";
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// Signs a company up and waits until it runs.
    async fn sign_up(&self, company: &str, id: &str) {
        self.type_into("#company", company).await;
        self.click("#submit").await;
        self.until(&format!("tr[data-id='{id}'] .state"), "running").await;
    }

    /// Leaves a picture, where somebody wants one.
    async fn picture(&self, name: &str) {
        if let Some(folder) = std::env::var_os("SCREENSHOTS") {
            let picture = self.client.screenshot().await.unwrap();
            std::fs::write(PathBuf::from(folder).join(format!("{name}.png")), picture).unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Also after a failure: first the driver, then what it left behind.
        let _ = self.driver.start_kill();
        kill_all_mentioning(self.profile.path());
    }
}

async fn look_after(browser: &Browser) {
    const ROW: &str = "tr[data-id='cafe-ohm']";
    let row = |rest: &str| format!("{ROW} {rest}");
    let state = State::new();
    let signup = Signup::start(&state).await;
    browser.client.goto(&signup.url).await.unwrap();
    browser.until("#live", "live").await;
    browser.until("#empty", "Nobody has signed up yet").await;

    browser.type_into("#company", "Café Öhm").await;
    let short = browser.client.find(Locator::Id("short")).await.unwrap();
    assert_eq!(short.prop("value").await.unwrap().as_deref(), Some("cafe-ohm"));
    browser.click("#submit").await;
    browser.until(&row(".state"), "running").await;
    browser.until("#signup-status", "Café Öhm is ready").await;
    browser.until("[data-total='running']", "1").await;
    browser.picture("signed-up").await;

    // The link leads to the company's own product.
    let link = browser.client.find(Locator::Css(&row("a[data-do='open']"))).await.unwrap();
    let endpoint = link.attr("href").await.unwrap().unwrap();
    browser.client.goto(&endpoint).await.unwrap();
    assert!(browser.text("header").await.contains("Café Öhm"));
    browser.picture("product").await;
    browser.client.goto(&signup.url).await.unwrap();

    browser.click(&row("button[data-do='sleep']")).await;
    browser.until(&row(".state"), "asleep").await;
    browser.until("#savings", "One notebook sleeps").await;
    browser.click(&row("button[data-do='wake']")).await;
    browser.until(&row(".state"), "running").await;

    browser.click(&row("button[data-do='details']")).await;
    browser.until("#log", "Signed up").await;
    browser.click("#panel button[data-do='suspend']").await;
    browser.type_into("#ask-reason", "three invoices open").await;
    browser.click("#ask-yes").await;
    browser.until(&row(".state"), "suspended").await;
    browser.until("#log", "three invoices open").await;
    browser.until(&row(".why"), "unpaid").await;
    browser.picture("suspended").await;
    browser.until_gone(&row("button[data-do='wake']")).await;
    browser.click("#panel button[data-do='lift']").await;
    browser.until(&row(".state"), "running").await;

    browser.click("#panel button[data-do='upgrade']").await;
    browser.until("#ask-title", "Change the version").await;
    browser.picture("upgrade").await;
    browser.click("#ask-yes").await;
    browser.until("#facts", "2.0").await;
    // The old version stands before an arrow until the new one runs.
    browser.until_gone(&row(".version[data-changing]")).await;
    assert_eq!(browser.text(&row(".version")).await, "2.0");
    browser.until(&row(".state"), "running").await;
    for (name, width, height) in [("narrow", 400, 1800), ("wide", 1600, 1100)] {
        browser.client.set_window_size(width, height).await.unwrap();
        browser.picture(name).await;
    }

    // Somebody else's change shows by itself.
    signup.done("/api/instances/cafe-ohm/sleep", json!({"reason": "from elsewhere"})).await;
    browser.until(&row(".state"), "asleep").await;
    browser.until("#log", "from elsewhere").await;

    browser.click("#panel button[data-do='delete']").await;
    browser.click("#ask-yes").await;
    browser.until_gone(ROW).await;
    browser.until("#panel-message", "gone").await;
    browser.until("#log", "Gone, with its data").await;
    browser.click("#panel-close").await;
    browser.until("#empty", "Nobody has signed up yet").await;
}

async fn go_wrong(browser: &Browser) {
    const HOSTILE: &str = "<img src=x onerror=alert(1)>";
    let state = State::new();
    let signup = Signup::start(&state).await;
    browser.client.goto(&signup.url).await.unwrap();
    browser.until("#live", "live").await;
    browser.sign_up(HOSTILE, "img-src-x-onerror-alert-1").await;
    assert_eq!(browser.text(".company").await, HOSTILE);
    browser.click("button[data-do='details']").await;
    browser.until("#panel-title", HOSTILE).await;
    browser.until("#log", HOSTILE).await;
    browser.until_gone("main img, #panel img").await;

    // A taken name is told, and what was typed stays.
    browser.type_into("#company", "Somebody else").await;
    browser.type_into("#short", "img-src-x-onerror-alert-1").await;
    browser.click("#submit").await;
    browser.until("#signup-status[data-kind='problem']", "taken").await;
    let company = browser.client.find(Locator::Id("company")).await.unwrap();
    assert_eq!(company.prop("value").await.unwrap().as_deref(), Some("Somebody else"));

    // With the service gone the page says so, and comes back with it.
    let address = signup.url.strip_prefix("http://").unwrap().to_owned();
    assert!(signup.end(rustix::process::Signal::TERM).await.success());
    browser.until("#live", "not connected").await;
    let mut command = support::command(state.path()).await;
    command.args(["--listen", &address]);
    let signup = Signup::start_as(command).await;
    browser.until("#live[data-live='yes']", "live").await;
    signup.done("/api/instances", json!({"id": "late", "tenant": "Late", "plan": "team"})).await;
    browser.until("tr[data-id='late'] .state", "running").await;
}

async fn search(browser: &Browser) {
    let state = State::new();
    let signup = Signup::start(&state).await;
    browser.client.goto(&signup.url).await.unwrap();
    browser.until("#live", "live").await;
    // Signed up at once while the page looks on: more than fit on a page of it.
    let names: Vec<_> = (0..53).map(|number| format!("company-{number:02}")).collect();
    let asking = &signup;
    let asked = names.iter().map(|id| async move {
        let (status, answer) = asking.post("/api/instances", &json!({"id": id, "tenant": id, "plan": "trial"})).await;
        assert_eq!(status, 202, "{answer}");
    });
    futures::future::join_all(asked).await;
    browser.until("[data-total='running']", "53").await;
    browser.until("#place", "1 to 50").await;
    browser.picture("many").await;
    browser.click("#next").await;
    browser.until("#place", "51 to 53").await;
    browser.until("tr:last-child .company", "company-52").await;
    browser.click("#previous").await;
    browser.until("#place", "1 to 50").await;
    browser.type_into("#search", "Company 51").await;
    browser.until("#place", "1 to 1").await;
    browser.click("tr[data-id='company-51'] button[data-do='sleep']").await;
    browser.until("tr[data-id='company-51'] .state", "asleep").await;
    browser.type_into("#search", "company").await;
    browser.click("#phase option[value='zero']").await;
    browser.until("#place", "1 to 1").await;
    browser.type_into("#search", "nobody").await;
    browser.until("#empty", "Nobody like that").await;
}
