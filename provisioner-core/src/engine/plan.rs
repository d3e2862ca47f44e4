//! What to do next, as a pure function.

use crate::types::{Generation, Intent, Observed, Phase, TargetState};

/// One decision of the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Look: what is there is not known.
    Observe,
    /// Make it, bring it to the spec in force, or start it again after it failed.
    Create,
    /// Stop it by decision.
    Suspend,
    /// Put it to sleep.
    ScaleToZero,
    /// Wake it.
    Resume,
    /// Remove it.
    Destroy,
    /// It is on its way: look again later.
    Wait,
    /// It is what it should be.
    Settled,
    /// It is gone: drop what is kept of it.
    Forget,
}

impl Step {
    /// The word for it, as everywhere else.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Create => "create",
            Self::Suspend => "suspend",
            Self::ScaleToZero => "scale to zero",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
            Self::Wait => "wait",
            Self::Settled => "settled",
            Self::Forget => "forget",
        }
    }

    /// Whether it changes something at the provider.
    #[must_use]
    pub const fn is_mutating(self) -> bool {
        matches!(self, Self::Create | Self::Suspend | Self::ScaleToZero | Self::Resume | Self::Destroy)
    }
}

/// The next step towards an intent, from what is known of the world.
///
/// An absence that is passed in is believed: who reads it has confirmed it where that is needed.
#[must_use]
pub fn plan(intent: &Intent, in_force: Generation, known: &Observed) -> Step {
    let present = match (intent.target_state(), known) {
        (_, Observed::Unknown { .. }) => return Step::Observe,
        (TargetState::Gone(_), Observed::Absent) => return Step::Forget,
        (TargetState::Running, Observed::Absent) => return Step::Create,
        // Nothing runs, which is what was asked. It is made when it is woken.
        (TargetState::Zero | TargetState::Suspended, Observed::Absent) => return Step::Settled,
        (_, Observed::Present(present)) => present,
    };
    match (intent.target_state(), present.phase) {
        // On its way out, whoever sent it there: what comes next is decided when it is absent.
        (_, Phase::Destroying) => Step::Wait,
        (TargetState::Gone(_), _) => Step::Destroy,
        // Updates, and wakes what slept through a change of its spec.
        (TargetState::Running, _) if present.generation < in_force => Step::Create,
        (TargetState::Running, Phase::Zero | Phase::Suspended) => Step::Resume,
        // Awake still, and on its way to sleep.
        (TargetState::Running, Phase::Running) if present.endpoint.is_none() => Step::Resume,
        (TargetState::Running, Phase::Failed) => Step::Create,
        (TargetState::Running, Phase::Provisioning) => Step::Wait,
        // A stale generation is no reason to wake what sleeps.
        (TargetState::Running, Phase::Running)
        | (TargetState::Zero, Phase::Zero)
        | (TargetState::Suspended, Phase::Suspended) => Step::Settled,
        (TargetState::Zero, _) => Step::ScaleToZero,
        (TargetState::Suspended, _) => Step::Suspend,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::types::{DataDisposition, Hold, Incarnation, Power, Present};

    const WANTED: Generation = Generation(2);

    fn intent(target: TargetState) -> Intent {
        let held = BTreeSet::from([Hold::new("unpaid").unwrap()]);
        match target {
            TargetState::Running => Intent::running(),
            TargetState::Zero => Intent { power: Power::Zero, ..Intent::running() },
            TargetState::Suspended => Intent { holds: held, ..Intent::running() },
            TargetState::Gone(data) => Intent { holds: held, power: Power::Zero, gone: Some(data) },
        }
    }

    fn seen(phase: Phase, generation: u64) -> Observed {
        let present = Present::new(phase, Generation(generation), Incarnation::new(1, 1));
        match phase {
            Phase::Running => present.with_endpoint("http://127.0.0.1:1").into(),
            _ => present.into(),
        }
    }

    const TARGETS: [TargetState; 4] =
        [TargetState::Running, TargetState::Zero, TargetState::Suspended, TargetState::Gone(DataDisposition::Delete)];

    #[test]
    fn every_pair_of_target_and_phase() {
        use Step::{Create, Destroy, Resume, ScaleToZero, Settled, Suspend, Wait};
        // Columns: provisioning, running, zero, suspended, destroying, failed.
        let table = [
            (TARGETS[0], [Wait, Settled, Resume, Resume, Wait, Create]),
            (TARGETS[1], [ScaleToZero, ScaleToZero, Settled, ScaleToZero, Wait, ScaleToZero]),
            (TARGETS[2], [Suspend, Suspend, Suspend, Settled, Wait, Suspend]),
            (TARGETS[3], [Destroy, Destroy, Destroy, Destroy, Wait, Destroy]),
        ];
        for (target, steps) in table {
            for (phase, step) in Phase::ALL.into_iter().zip(steps) {
                assert_eq!(plan(&intent(target), WANTED, &seen(phase, 2)), step, "{target:?} {phase}");
            }
        }
    }

    #[test]
    fn what_is_unknown_is_looked_at_and_what_is_absent_is_made_or_forgotten() {
        let unknown = Observed::Unknown { again: Duration::ZERO };
        let absent = [Step::Create, Step::Settled, Step::Settled, Step::Forget];
        for (target, step) in TARGETS.into_iter().zip(absent) {
            assert_eq!(plan(&intent(target), WANTED, &unknown), Step::Observe);
            assert_eq!(plan(&intent(target), WANTED, &Observed::Absent), step);
        }
    }

    #[test]
    fn a_stale_generation_is_updated_when_it_should_run_and_left_asleep_otherwise() {
        for phase in [Phase::Provisioning, Phase::Running, Phase::Zero, Phase::Suspended, Phase::Failed] {
            assert_eq!(plan(&intent(TargetState::Running), WANTED, &seen(phase, 1)), Step::Create, "{phase}");
        }
        assert_eq!(plan(&intent(TargetState::Zero), WANTED, &seen(Phase::Zero, 1)), Step::Settled);
        assert_eq!(plan(&intent(TargetState::Suspended), WANTED, &seen(Phase::Suspended, 1)), Step::Settled);
    }

    #[test]
    fn what_is_on_its_way_to_sleep_is_woken_when_it_should_run() {
        let stopping = Present::new(Phase::Running, WANTED, Incarnation::new(1, 1)).into();
        let steps = [Step::Resume, Step::ScaleToZero, Step::Suspend, Step::Destroy];
        for (target, step) in TARGETS.into_iter().zip(steps) {
            assert_eq!(plan(&intent(target), WANTED, &stopping), step, "{target:?}");
        }
    }

    /// A provider that does at once what it is told.
    fn obey(step: Step, world: Observed) -> Observed {
        match step {
            Step::Create | Step::Resume => seen(Phase::Running, WANTED.0),
            Step::Suspend => seen(Phase::Suspended, 1),
            Step::ScaleToZero => seen(Phase::Zero, 1),
            Step::Destroy => Observed::Absent,
            Step::Wait => match world.phase() {
                Some(Phase::Destroying) => Observed::Absent,
                _ => seen(Phase::Running, WANTED.0),
            },
            Step::Observe | Step::Settled | Step::Forget => world,
        }
    }

    proptest! {
        #[test]
        fn from_any_world_any_target_is_reached_and_then_left_alone(
            target in 0_usize..4, phase in 0_usize..7, generation in 1_u64..=2, power in any::<bool>(),
        ) {
            let mut intent = intent(TARGETS[target]);
            if power && intent.gone.is_none() && !intent.holds.is_empty() {
                intent.power = Power::Zero; // A hold outweighs it.
            }
            let mut world = Phase::ALL.get(phase).map_or(Observed::Absent, |phase| seen(*phase, generation));
            let mut steps = Vec::new();
            loop {
                let step = plan(&intent, WANTED, &world);
                steps.push(step);
                if matches!(step, Step::Settled | Step::Forget) {
                    break;
                }
                prop_assert!(steps.len() < 5, "no end: {steps:?}");
                world = obey(step, world);
            }
            prop_assert_eq!(plan(&intent, WANTED, &world), *steps.last().unwrap());
        }

        #[test]
        fn nothing_but_gone_destroys_and_gone_starts_nothing(phase in 0_usize..6, target in 0_usize..4, generation in 1_u64..=3) {
            let step = plan(&intent(TARGETS[target]), WANTED, &seen(Phase::ALL[phase], generation));
            prop_assert_eq!(step == Step::Destroy || step == Step::Wait, step == Step::Wait || target == 3);
            prop_assert!(target != 3 || !matches!(step, Step::Create | Step::Resume | Step::Settled));
        }
    }
}
