//! 4. A verb cut anywhere and repeated converges.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    future::{BoxFuture, try_join_all},
    task::{ArcWake, AtomicWaker},
};
use provisioner_core::{
    Error, ErrorKind,
    layers::{Chaos, Fault},
    types::{Observed, Target},
};
use tokio::time::Instant;

use crate::{
    Subject, Verb,
    failure::{During, Outcome, ensure},
    random,
    subject::shown,
};

/// More await points than any call has that ever ends: one that sends a dozen requests on a busy machine has hundreds.
const CUTS_MAX: usize = 2_000;

/// Where a call is cut at its n-th await point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// As soon as it waits.
    AtOnce,
    /// When what it waits for is there, and before it sees that.
    Answered,
}

/// Polls a future so many times, and then no more.
struct CutAfter<'a, T> {
    call: BoxFuture<'a, T>,
    polls_left: usize,
    cut: Cut,
    woken: Arc<Woken>,
}

/// Notes that the call could go on, and wakes whoever waits for that.
#[derive(Default)]
struct Woken {
    rung: std::sync::atomic::AtomicBool,
    outer: AtomicWaker,
}

impl ArcWake for Woken {
    fn wake_by_ref(this: &Arc<Self>) {
        this.rung.store(true, std::sync::atomic::Ordering::SeqCst);
        this.outer.wake();
    }
}

impl<T> Future for CutAfter<'_, T> {
    /// None: it was cut.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        use std::sync::atomic::Ordering::SeqCst;
        let this = &mut *self;
        this.woken.outer.register(cx.waker());
        if this.polls_left == 0 {
            let waits = this.cut == Cut::Answered && !this.woken.rung.swap(false, SeqCst);
            return if waits { Poll::Pending } else { Poll::Ready(None) };
        }
        this.woken.rung.store(false, SeqCst);
        let waker = futures::task::waker(Arc::clone(&this.woken));
        match this.call.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => {
                this.polls_left -= 1;
                if this.polls_left == 0 && this.cut == Cut::AtOnce {
                    return Poll::Ready(None);
                }
                Poll::Pending
            }
        }
    }
}

/// Calls a verb and drops it at its n-th await point; whether it was cut there, and did not end before.
async fn cut_call(subject: &Subject, verb: Verb, target: &Target, polls: usize, cut: Cut) -> bool {
    let cx = subject.cx_of(target);
    subject.touch(target);
    let call: BoxFuture<'_, Result<Observed, Error>> = Box::pin(verb.call(&*subject.backend, &cx, target));
    let answer = CutAfter { call, polls_left: polls, cut, woken: Arc::default() }.await;
    subject.touch(target);
    answer.is_none()
}

/// Goes through the await points of a verb, or some of them, some at once, until the verb ends before it is cut. At least once it
/// is cut: where it has fewer points than there are between those that are looked at, earlier ones are tried.
async fn each_cut<F: Future<Output = Outcome> + Send>(
    subject: &Subject,
    verb: Verb,
    then: impl Fn(Subject, Target) -> F + Send + Sync,
) -> Outcome {
    for cut in [Cut::AtOnce, Cut::Answered] {
        let (mut at_once, apart) = (subject.profile.cuts_at_once, subject.profile.cuts_apart);
        let earliest = usize::from(cut == Cut::Answered);
        let mut first = earliest + random() as usize % apart;
        let mut was_cut = false;
        loop {
            ensure!(first < CUTS_MAX, "{verb} is not at its end after {CUTS_MAX} await points");
            let each = (first..).step_by(apart).take(at_once).map(|polls| {
                let then = &then;
                async move {
                    let target = subject.ready_for(verb).await?;
                    let was_cut = cut_call(subject, verb, &target, polls, cut).await;
                    let done = then(subject.clone(), target.clone()).await;
                    done.during(format_args!("{verb} cut at await point {polls} ({cut:?})"))?;
                    // Nobody needs it any more, and a real provider has no room for hundreds at once. Who counts what is
                    // left comes later.
                    let _ = subject.call(Verb::DESTROY, &target).await;
                    Outcome::Ok(was_cut)
                }
            });
            let cuts = try_join_all(each).await?;
            was_cut |= cuts.contains(&true);
            if !cuts.contains(&false) {
                first += at_once * apart;
            } else if was_cut || first == earliest {
                break;
            } else {
                (first, at_once) = (earliest + (first - earliest) / 3, 1);
            }
        }
    }
    Ok(())
}

/// Dropped at each await point and repeated: one thing, in the verb's state.
pub(super) async fn a_verb_cut_at_any_await_point_and_repeated_converges(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            each_cut(&subject, verb, |subject, target| async move {
                subject.reach(verb, &target).await?;
                subject.expect_end(verb, &target).await
            })
            .await
        }
    });
    try_join_all(each).await.map(drop)
}

/// Dropped at each await point and followed by `destroy`: nothing is left, not even of what was half made.
pub(super) async fn a_half_made_incarnation_is_destroyed_without_a_trace(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            each_cut(&subject, verb, |subject, target| async move {
                subject.reach(Verb::DESTROY, &target).await?;
                subject.expect_things(&target, 0).await?;
                if verb == Verb::RETAIN {
                    // It may have got as far as to retain it, and then it is no business of the second call.
                    subject.backend.delete_data(&subject.cx(), target.data.id()).await?;
                    subject.touch(&target);
                }
                let listed = subject.list().await?;
                let left = listed.iter().any(|owned| owned.id == target.id);
                ensure!(!left, "something of it is still listed");
                Ok(())
            })
            .await
        }
    });
    try_join_all(each).await.map(drop)
}

/// Cut at each await point by the death of the caller's process: another backend on the same provider takes it up.
pub(super) async fn another_backend_on_the_same_provider_takes_up_what_was_cut(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            each_cut(&subject, verb, |subject, target| async move {
                let reopen = subject.profile.reopen.as_ref().expect("needed");
                let other = subject.through(reopen());
                other.look(&target).await?;
                other.reach(verb, &target).await?;
                other.expect_end(verb, &target).await?;
                let (seen, also) = (subject.at_rest(&target).await?, other.at_rest(&target).await?);
                ensure!(seen.phase() == also.phase(), "one sees it {}, the other {}", shown(&seen), shown(&also));
                Ok(())
            })
            .await
        }
    });
    try_join_all(each).await.map(drop)
}

/// Has a fault befall each verb once, and repeats the verb.
async fn with_fault(subject: &Subject, fault: Fault, expect: fn(&Result<Observed, Error>) -> bool) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            let target = subject.ready_for(verb).await?;
            let chaos = Chaos::new(Arc::clone(&subject.backend));
            chaos.script(verb.operation(), fault);
            let chaotic = subject.through(Arc::new(chaos));
            let mut cx = subject.cx_of(&target);
            cx.deadline = Some(Instant::now() + FAULTY_CALL);
            let answer = chaotic.call_with(verb, &cx, &target).await;
            ensure!(expect(&answer), "{verb} answered {answer:?}");
            subject.reach(verb, &target).await.during(verb)?;
            subject.expect_end(verb, &target).await.during(verb)
        }
    });
    try_join_all(each).await.map(drop)
}

const FAULTY_CALL: Duration = Duration::from_millis(60);
const LATE: Duration = Duration::from_millis(100);
/// So late that also on a machine that stalls the caller has given up before.
const FAR_TOO_LATE_MS: u64 = 3_600_000;

/// The verb has its effect, and its answer is lost.
pub(super) async fn a_verb_whose_answer_was_lost_and_repeated_converges(subject: Subject) -> Outcome {
    with_fault(&subject, Fault::AfterApply, Result::is_err).await
}

/// The verb's answer comes after the caller has given up.
pub(super) async fn a_verb_whose_answer_comes_late_and_repeated_converges(subject: Subject) -> Outcome {
    with_fault(&subject, Fault::Late { after_ms: FAR_TOO_LATE_MS }, Result::is_err).await
}

/// The verb's effect comes after the caller has given up, and beside its repetition.
pub(super) async fn a_verb_whose_effect_comes_late_and_repeated_converges(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move { late_effect(&subject, verb).await.during(verb) }
    });
    try_join_all(each).await.map(drop)
}

async fn late_effect(subject: &Subject, verb: Verb) -> Outcome {
    let target = subject.ready_for(verb).await?;
    let chaos = Chaos::new(Arc::clone(&subject.backend));
    chaos.script(verb.operation(), Fault::LateEffect { after_ms: LATE.as_millis() as u64 });
    let chaotic = subject.through(Arc::new(chaos.clone()));
    let mut cx = subject.cx_of(&target);
    cx.deadline = Some(Instant::now() + FAULTY_CALL);
    let answer = chaotic.call_with(verb, &cx, &target).await;
    ensure!(answer.is_err(), "it answered {answer:?}");
    subject.reach(verb, &target).await?;
    subject.until("the late call is made", || async { Ok(chaos.late_effects() == 0) }).await?;
    subject.touch(&target);
    let seen = subject.at_rest(&target).await?;
    ensure!(verb.is_reached(&target, &seen), "it was reached, and after the late call it was {}", shown(&seen));
    subject.expect_end(verb, &target).await
}

/// A call of an older generation that arrives behind a newer one changes nothing.
pub(super) async fn a_late_call_of_an_older_generation_changes_nothing(subject: Subject) -> Outcome {
    for verb in Verb::WAKE {
        let target = subject.ready_for(Verb::Suspend).await?;
        let (older, newer) = (subject.at(&target, 2), subject.at(&target, 3));
        let chaos = Chaos::new(Arc::clone(&subject.backend));
        chaos.script(verb.operation(), Fault::LateEffect { after_ms: LATE.as_millis() as u64 });
        let chaotic = subject.through(Arc::new(chaos.clone()));
        let mut cx = subject.cx_of(&target);
        cx.deadline = Some(Instant::now() + Duration::from_millis(5));
        let _ = chaotic.call_with(verb, &cx, &older).await;
        subject.reach(verb, &newer).await?;
        subject.until("the late call is made", || async { Ok(chaos.late_effects() == 0) }).await?;
        subject.touch(&target);
        let seen = subject.at_rest(&target).await?;
        let generation = seen.present().map(|present| present.generation);
        ensure!(generation == Some(newer.generation), "after a late {verb} of generation 2 it is {}", shown(&seen));
    }
    Ok(())
}

/// A cancelled call ends soon, and repeated it converges.
pub(super) async fn a_cancelled_verb_ends_soon_and_repeated_converges(subject: Subject) -> Outcome {
    for before in [true, false] {
        for verb in Verb::ALL {
            let target = subject.ready_for(verb).await?;
            let was = subject.at_rest(&target).await?;
            let cx = subject.cx_of(&target);
            if before {
                cx.cancel.cancel();
            }
            let cancel = cx.cancel.clone();
            let call = subject.call_with(verb, &cx, &target);
            let cancelled = async {
                tokio::task::yield_now().await;
                cancel.cancel();
                std::future::pending::<()>().await;
            };
            let limit = subject.call_max();
            let answer = tokio::select! {
                answer = call => answer,
                () = cancelled => unreachable!("it never ends"),
                () = tokio::time::sleep(limit) => {
                    return Err(crate::Failure::new(format!("{verb} goes on {limit:?} after it was cancelled")));
                }
            };
            if let Err(error) = answer {
                let kind = error.kind();
                ensure!(kind == ErrorKind::Cancelled, "{verb} was cancelled and answers {kind}");
                subject.expect_no_effect(&error, &target, &was).await.during(verb)?;
            }
            subject.reach(verb, &target).await.during(verb)?;
            subject.expect_end(verb, &target).await.during(verb)?;
        }
    }
    Ok(())
}
