//! Many who ask at once, and answers in pages.

use super::*;

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
