//! Starts the real binary and uses it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use reqwest::{
    StatusCode,
    blocking::{Client, Response},
    redirect::Policy,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A running product. Killed when dropped.
struct Product {
    child: Child,
    url: String,
    client: Client,
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_product"));
    command
        .env_clear()
        .envs([("PORT", "0"), ("TENANT", "Acme <b>& Sons</b>"), ("PRODUCT_VERSION", "1.1")])
        .env("DATA_PATH", data)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Product {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit_once(" is at ").unwrap_or_else(|| panic!("it said {line:?}")).1.to_owned();
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { child, url, client }
    }

    fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().unwrap()
    }

    fn form(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        self.client.post(format!("{}{path}", self.url)).form(fields).send().unwrap()
    }

    fn pages(&self) -> Vec<Value> {
        self.get("/api/pages").json().unwrap()
    }

    fn stop(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        ended(&mut self.child)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a product that is expected to end by itself: its exit code and what it said on stderr.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (ended(&mut child).code(), said)
}

#[test]
fn pages_are_there_after_a_stop_and_a_start() {
    let data = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let product = Product::start(&mut command(data.path()));
        assert_eq!(product.get("/healthz").status(), StatusCode::OK);
        let answer = product.form("/pages", &[("title", "Minutes"), ("text", "one\r\n two")]);
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        assert_eq!(product.stop(signal).code(), Some(0));
    }
    let product = Product::start(command(data.path()).env("GREETING", "Hello there"));
    let pages = product.pages();
    assert_eq!(pages.len(), 2);
    assert_eq!(pages[0]["text"], "one\n two");
    let list = product.get("/").text().unwrap();
    assert!(list.contains("Hello there") && list.contains("version 1.1") && list.contains("Minutes"), "{list}");
}

#[test]
fn a_page_is_written_read_edited_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let product = Product::start(&mut command(data.path()));
    let written = product.form("/pages", &[("title", " Plan "), ("text", "\nfirst line is empty")]);
    let place = written.headers()["location"].to_str().unwrap().to_owned();
    assert!(product.get(&place).text().unwrap().contains("<h1>Plan</h1>"));
    let form = product.get(&format!("{place}/edit")).text().unwrap();
    assert!(
        form.contains("<textarea id=\"text\" name=\"text\" rows=\"14\">\n\nfirst line is empty</textarea>"),
        "{form}"
    );
    let edited = product.form(&place, &[("title", "Plan B"), ("text", "x"), ("revision", "1")]);
    assert_eq!(edited.status(), StatusCode::SEE_OTHER);
    assert_eq!(product.pages()[0]["title"], "Plan B");
    assert_eq!(product.form(&format!("{place}/delete"), &[]).status(), StatusCode::SEE_OTHER);
    assert_eq!(product.get(&place).status(), StatusCode::NOT_FOUND);
    assert!(product.pages().is_empty());
}

#[test]
fn of_two_writers_the_second_is_told_and_loses_no_text() {
    let data = tempfile::tempdir().unwrap();
    let product = Product::start(&mut command(data.path()));
    product.form("/pages", &[("title", "Shared"), ("text", "draft")]);
    let first = product.form("/pages/1", &[("title", "Shared"), ("text", "from Ann"), ("revision", "1")]);
    assert_eq!(first.status(), StatusCode::SEE_OTHER);
    let second = product.form("/pages/1", &[("title", "Shared"), ("text", "from Bob"), ("revision", "1")]);
    assert_eq!(second.status(), StatusCode::CONFLICT);
    let text = second.text().unwrap();
    assert!(text.contains("from Ann") && text.contains("from Bob") && text.contains("value=\"2\""), "{text}");
    assert_eq!(product.pages()[0]["text"], "from Ann");
}

#[test]
fn writers_at_once_lose_nothing() {
    let data = tempfile::tempdir().unwrap();
    let product = Product::start(&mut command(data.path()));
    std::thread::scope(|scope| {
        for writer in ["Ann", "Bob"] {
            let product = &product;
            scope.spawn(move || {
                for number in 0..20 {
                    let page = json!({"title": format!("{writer} {number}")});
                    let answer = product.client.post(format!("{}/api/pages", product.url)).json(&page).send().unwrap();
                    assert_eq!(answer.status(), StatusCode::CREATED);
                }
            });
        }
    });
    assert_eq!(product.pages().len(), 40);
}

#[test]
fn hostile_input_is_shown_as_text() {
    const HOSTILE: &str = "</textarea></title><script>alert('x')</script>\"onload=\"";
    let data = tempfile::tempdir().unwrap();
    let product = Product::start(&mut command(data.path()));
    product.form("/pages", &[("title", HOSTILE), ("text", HOSTILE)]);
    for path in ["/", "/pages/1", "/pages/1/edit"] {
        let answer = product.get(path);
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        let html = answer.text().unwrap();
        assert!(html.contains("&lt;script&gt;") && html.contains("Acme &lt;b&gt;&amp; Sons"), "{path}: {html}");
        assert!(!html.contains("<script") && !html.contains("\"onload=\"") && !html.contains("<b>"), "{path}: {html}");
    }
    assert_eq!(product.pages()[0]["title"], HOSTILE);
}

#[test]
fn what_cannot_be_a_page_is_refused_and_kept_in_the_form() {
    let data = tempfile::tempdir().unwrap();
    let product = Product::start(&mut command(data.path()));
    let answer = product.form("/pages", &[("title", "  "), ("text", "keep me")]);
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.text().unwrap().contains("keep me"));
    let fits = "x".repeat(256 * 1024);
    assert_eq!(product.form("/pages", &[("title", "t"), ("text", &fits)]).status(), StatusCode::SEE_OTHER);
    let beyond = format!("{fits}x");
    assert_eq!(product.form("/pages", &[("title", "t"), ("text", &beyond)]).status(), StatusCode::UNPROCESSABLE_ENTITY);
    let elsewhere =
        product.client.post(format!("{}/pages/1/delete", product.url)).header("sec-fetch-site", "cross-site");
    assert_eq!(elsewhere.send().unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(product.pages().len(), 1);
}

#[test]
fn a_missing_or_wrong_variable_is_named_and_ends_with_2() {
    let data = tempfile::tempdir().unwrap();
    for name in ["PORT", "DATA_PATH", "TENANT", "PRODUCT_VERSION"] {
        let (code, said) = refused(command(data.path()).env_remove(name));
        assert_eq!(code, Some(2));
        assert!(said.starts_with(&format!("product: {name} is not set: expected ")), "{said}");
    }
    let file = data.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    for (name, value) in
        [("PORT", "65536"), ("PORT", "http"), ("DATA_PATH", file), ("PRODUCT_FAULT", "sometimes"), ("ADDRESS", "here")]
    {
        let (code, said) = refused(command(data.path()).env(name, value));
        assert_eq!(code, Some(2));
        assert!(said.starts_with(&format!("product: {name} is \"{value}")) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn it_listens_where_it_is_told() {
    let data = tempfile::tempdir().unwrap();
    let everywhere = Product::start(command(data.path()).env("ADDRESS", "0.0.0.0"));
    assert!(everywhere.url.starts_with("http://0.0.0.0:"), "{}", everywhere.url);
    assert_eq!(everywhere.get("/healthz").status(), StatusCode::OK);
}

#[test]
fn a_taken_port_and_a_damaged_notebook_are_named_and_end_with_1() {
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = refused(command(data.path()).env("PORT", &port));
    assert_eq!(code, Some(1));
    assert!(said.starts_with(&format!("product: cannot listen on 127.0.0.1:{port} (PORT): ")), "{said}");
    let damaged = tempfile::tempdir().unwrap();
    std::fs::write(damaged.path().join("notebook.db"), "this is no database, and long enough to tell".repeat(9))
        .unwrap();
    let (code, said) = refused(&mut command(damaged.path()));
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot be opened") && said.lines().count() == 1, "{said}");
}

#[test]
fn each_fault_is_what_it_says() {
    let data = tempfile::tempdir().unwrap();
    let (code, said) = refused(command(data.path()).env("PRODUCT_FAULT", "exit"));
    assert_eq!(code, Some(3), "{said}");

    let unwell = Product::start(command(data.path()).env("PRODUCT_FAULT", "unhealthy"));
    assert_eq!(unwell.get("/healthz").status(), StatusCode::SERVICE_UNAVAILABLE);

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let elsewhere =
        Product::start(command(data.path()).env("PRODUCT_FAULT", "other-port").env("PORT", port.to_string()));
    assert_ne!(elsewhere.url, format!("http://127.0.0.1:{port}"));

    let data = tempfile::tempdir().unwrap();
    let mut silent = command(data.path()).env("PRODUCT_FAULT", "never-listen").spawn().unwrap();
    // It watches its signals before it makes its notebook.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !data.path().join("notebook.db").exists() {
        assert!(Instant::now() < deadline, "it made no notebook");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(silent.try_wait().unwrap(), None);
    kill_process(Pid::from_child(&silent), Signal::TERM).unwrap();
    assert_eq!(ended(&mut silent).code(), Some(0));
}
