//! 9. `watch` yields ids worth looking at.

use std::time::Duration;

use futures::{
    StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use provisioner_core::types::{InstanceId, Phase, Target};

use crate::{
    Ability, Profile, Subject, Verb,
    failure::{Outcome, ensure},
    subject::shown,
};

/// More than a death is told by.
const IDS_MAX: usize = 100;

/// The longest that news is waited for.
const NEWS_MAX: Duration = Duration::from_secs(60);

/// A watch that is open: some are opened by the first poll, and some ask the provider then.
async fn opened(subject: &Subject) -> BoxStream<'static, InstanceId> {
    let mut stream = subject.backend.watch(&subject.cx());
    let first = tokio::time::timeout(subject.profile.watch_opens_in, stream.next()).await;
    match first {
        Ok(Some(id)) => stream::iter([id]).chain(stream).boxed(),
        _ => stream,
    }
}

/// Has something happen to a running instance that nobody called for.
async fn strike(subject: &Subject, target: &Target) -> Outcome {
    let outsider = subject.outsider();
    match subject.profile.deaths_pass_unseen {
        true => outsider.stop(&subject.owner, target).await?,
        false => outsider.kill(&subject.owner, target).await?,
    }
    Ok(())
}

/// What an outsider has to be able to do for that.
pub(super) fn striking(profile: &Profile) -> Ability {
    if profile.deaths_pass_unseen { Ability::Stop } else { Ability::Kill }
}

/// Waits until the stream yields this id.
async fn yields(subject: &Subject, stream: &mut BoxStream<'static, InstanceId>, id: &InstanceId) -> bool {
    let found = async {
        while let Some(next) = stream.next().await {
            if next == *id {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(subject.profile.deadline.min(NEWS_MAX), found).await.unwrap_or(false)
}

/// An instance dies or is stopped; and a move whose end nobody was told to look for ends.
pub(super) async fn watch_yields_the_id_of_what_changes(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let mut stream = opened(&subject).await;
    strike(&subject, &target).await?;
    let mut news = opened(&subject).await;
    ensure!(
        yields(&subject, &mut stream, &target.id).await,
        "watch does not tell that an instance died or was stopped"
    );
    for verb in [Verb::Resume, Verb::Zero, Verb::DESTROY] {
        let answer = subject.call(verb, &target).await?;
        let waits = answer.present().is_some_and(|seen| seen.again.is_none() && Some(seen.phase) != verb.end());
        if waits {
            let told = yields(&subject, &mut news, &target.id).await;
            ensure!(told, "{verb} answers no time to look again, and watch does not tell of its end");
        }
        subject.reach(verb, &target).await?;
    }
    Ok(())
}

/// Another control plane's changes are nobody else's.
pub(super) async fn watch_yields_nothing_of_another_control_plane(subject: Subject) -> Outcome {
    let other = subject.neighbour();
    let (target, own) = (subject.running().await?, other.running().await?);
    let (mut first, mut stream) = (opened(&subject).await, opened(&other).await);
    strike(&subject, &target).await?;
    let told = yields(&subject, &mut first, &target.id).await;
    ensure!(told, "watch does not tell whose instance it is that died or was stopped");
    strike(&other, &own).await?;
    let mut ids = Vec::new();
    // Some providers notice late.
    let (soon, late) = (Duration::from_millis(300), subject.profile.deadline.min(NEWS_MAX));
    while let Ok(Some(id)) = tokio::time::timeout(if ids.contains(&own.id) { soon } else { late }, stream.next()).await
    {
        ids.push(id);
        if ids.len() > IDS_MAX {
            break;
        }
    }
    ensure!(!ids.contains(&target.id), "watch tells of another control plane's instance");
    ensure!(ids.contains(&own.id), "watch does not tell of its own instance");
    Ok(())
}

/// Who cannot watch yields nothing and says so.
pub(super) async fn without_watch_the_stream_is_empty(subject: Subject) -> Outcome {
    let mut stream = subject.backend.watch(&subject.cx());
    let target = subject.running().await?;
    let first = tokio::time::timeout(Duration::from_millis(200), stream.next()).await;
    ensure!(!matches!(first, Ok(Some(_))), "there is no watch, and it yields {:?} of {}", first, target.id);
    Ok(())
}

/// Whoever reads no event sees the truth by looking, and may open the watch again.
pub(super) async fn losing_events_costs_no_truth(subject: Subject) -> Outcome {
    let unread = subject.backend.watch(&subject.cx());
    let targets = try_join_all((0..8).map(|_| subject.running())).await?;
    drop(unread);
    for (at, target) in targets.iter().enumerate() {
        subject.reach(if at % 2 == 0 { Verb::Zero } else { Verb::Suspend }, target).await?;
    }
    subject.settle().await;
    for (at, seen) in subject.backend.observe_many(&subject.cx(), &targets).await.into_iter().enumerate() {
        let (seen, expected) = (seen?, if at % 2 == 0 { Phase::Zero } else { Phase::Suspended });
        ensure!(seen.phase() == Some(expected), "after lost events it is {}, expected {expected}", shown(&seen));
    }
    if subject.profile.capabilities().watch && subject.profile.can(striking(&subject.profile)) {
        let target = subject.running().await?;
        let mut again = opened(&subject).await;
        strike(&subject, &target).await?;
        ensure!(yields(&subject, &mut again, &target.id).await, "a watch that was opened again tells nothing");
    }
    Ok(())
}
