//! A control plane as a service that stays, and the question to it: what a machine's tests run in the machine.
//!
//! `serve STORE ROOT ADDRESS PRODUCT` runs until SIGTERM and answers at the socket beside the store; `ask STORE WORDS`
//! prints one answer and fails when the service does. The words: a verb such as `Create`, about the one instance; `show`,
//! a fact in each line; `get PATH`, what the instance answers there; `events`; `capabilities`; `ping`. With `GROUPS=none` in its
//! environment instances have no control groups.

use std::{
    env,
    error::Error,
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream as Connection,
    path::{Path, PathBuf},
    sync::Arc,
};

use provisioner_core::Provisioner;
use tests::{
    http,
    place::{PORTS, Site, id},
    plane::{Options, Plane, ended},
    verb::{NAME, Verb},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", store, root, address, product] => {
            let (store, root, product) = (store.into(), root.into(), product.into());
            let groups = env::var("GROUPS").as_deref() != Ok("none");
            let site = Site { store, root, address: address.parse()?, ports: PORTS, product, users: true, groups };
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(serve(site))
        }
        ["ask", store, words @ ..] => ask(store.as_ref(), &words.join(" ")),
        _ => Err("expected serve or ask".into()),
    }
}

fn socket(store: &Path) -> PathBuf {
    store.with_extension("socket")
}

fn ask(store: &Path, words: &str) -> Outcome<()> {
    let mut service = Connection::connect(socket(store))?;
    service.write_all(words.as_bytes())?;
    service.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    service.read_to_string(&mut answer)?;
    let answer = answer.strip_prefix("ok\n").ok_or_else(|| answer.clone())?;
    print!("{answer}");
    Ok(())
}

async fn serve(site: Site) -> Outcome<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let plane = Arc::new(Plane::start(&site, Options::default()).await);
    // One that was killed left its own.
    let _ = fs::remove_file(socket(&site.store));
    let listener = UnixListener::bind(socket(&site.store))?;
    println!("serving");
    let site = Arc::new(site);
    let mut answers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            Some(_) = answers.join_next() => {}
            asked = listener.accept() => {
                answers.spawn(converse(asked?.0, Arc::clone(&plane), Arc::clone(&site)));
            }
        }
    }
    answers.shutdown().await;
    let plane = Arc::into_inner(plane).ok_or("somebody still asks")?;
    plane.stop().await;
    println!("ended");
    Ok(())
}

async fn converse(mut asker: UnixStream, plane: Arc<Plane>, site: Arc<Site>) {
    let mut words = String::new();
    let answer = match asker.read_to_string(&mut words).await {
        Ok(_) => answer(&words, &plane, &site).await,
        Err(error) => Err(error.into()),
    };
    let answer = answer.map_or_else(|error| format!("error: {error}\n"), |answer| format!("ok\n{answer}\n"));
    // Whoever has stopped listening has failed already.
    let _ = asker.write_all(answer.as_bytes()).await;
}

async fn answer(words: &str, plane: &Plane, site: &Site) -> Outcome<String> {
    match words.split_once(' ').unwrap_or((words, "")) {
        ("ping", "") => Ok(String::new()),
        ("show", "") => {
            let instance = plane.plane.get(&id(NAME)).await?;
            let endpoint = instance.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
            Ok(format!(
                "phase {:?}\nsettled {}\nincarnation {:?}\nendpoint {endpoint}\ndata {}",
                instance.phase, instance.settled, instance.incarnation, instance.data
            ))
        }
        ("get", path) => {
            let instance = plane.plane.get(&id(NAME)).await?;
            let endpoint = instance.endpoint.as_ref().ok_or("it answers nowhere")?;
            let (status, body) = http::get(&endpoint.to_string(), path).await?;
            if status == 200 { Ok(body) } else { Err(format!("{status} {body}").into()) }
        }
        ("capabilities", "") => {
            let capabilities = plane.backend.capabilities();
            let (outlives, isolation) = (capabilities.survives_control_plane, capabilities.isolation);
            Ok(format!("survives {outlives}\nusers {}\nmemory {:?}", isolation.users, isolation.memory))
        }
        ("events", "") => {
            let events = plane.events(Some(&id(NAME))).await;
            let lines: Vec<_> = events.iter().map(|event| format!("{:?}", event.event.what)).collect();
            Ok(lines.join("\n"))
        }
        (verb, "") => {
            let operation = verb.parse::<Verb>()?.ask(&plane.plane, site).await?;
            Ok(format!("ended {}", ended(&operation).await.state.as_str()))
        }
        _ => Err(format!("{words}: not understood").into()),
    }
}
