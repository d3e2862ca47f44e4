//! Who may work on what, where several control planes share a store: a book of sessions and claims that the witness keeps by
//! itself, and what must hold by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use provisioner_core::{
    Result,
    seams::{Clock, SettableClock},
    store::{Change, Claiming, Committed, EventKind, InstanceRow, Record, Renewal, StoreError, Worker},
    types::{Incarnation, InstanceId, OperationId, Target},
};
use tokio::time::Instant;

use super::{State, Witness};
use crate::world::BEGINNING;

/// By how much the engine's time may run ahead within the time that late calls may take: it catches up with a clock a tenth
/// faster.
const AHEAD: u32 = 10;

/// How several processes share a store.
#[derive(Debug, Clone, Copy)]
struct Rules {
    lapses_after: Duration,
    /// After so long no call can be under way any more.
    longest_call: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    process: u64,
    /// In milliseconds since the run began, as the store counts them. From then on it is over.
    until: u128,
    /// It was over before the clock was set back. It may be in force again, as far as nobody has taken anything from it.
    has_lapsed: bool,
}

/// Sessions and claims, as they must be.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// None: one session at a time, which works on everything.
    rules: Option<Rules>,
    /// What the times of two processes may differ by, as the store's clock was set.
    apart: Duration,
    all: BTreeMap<u64, Session>,
    claims: BTreeMap<InstanceId, u64>,
    makings: BTreeMap<Incarnation, u64>,
    /// When an instance was taken over from a session that lapsed over it, until that is known to be over.
    takeovers: BTreeMap<InstanceId, Instant>,
    /// The requests that were put into the inbox and are not answered yet, and those that were.
    submitted: BTreeMap<u64, OperationId>,
    answered: BTreeSet<u64>,
    accepted: BTreeSet<OperationId>,
}

impl Witness {
    /// Several processes share the store: their sessions lapse after so much silence, and no call takes longer than that.
    pub fn expect_replicas(&self, lapses_after: Duration, longest_call: Duration) {
        self.state().sessions.rules = Some(Rules { lapses_after, longest_call });
    }

    /// Sessions lapse by this clock, which somebody sets.
    pub fn go_by(&self, clock: Arc<SettableClock>) {
        self.store_clock.set(clock).expect("it is told once");
    }

    /// A session was opened. Where there is one at a time, earlier ones are over.
    pub fn session_opened(&self, process: u64, epoch: u64) {
        let mut state = self.state();
        state.newest = process;
        state.note(self.began.elapsed(), &format!("{process} opens a session"));
        state.sessions.opened(self.now_ms(), process, epoch);
    }

    /// A process asked for its session to go on.
    pub fn session_renewed(&self, process: u64, epoch: u64, outcome: &Result<Renewal, StoreError>) {
        let found = self.state().sessions.renewed(self.now_ms(), process, epoch, outcome);
        self.violated_if(found);
    }

    /// A process ended its session.
    pub fn session_closed(&self, process: u64, epoch: u64) {
        let mut state = self.state();
        if state.sessions.all.get(&epoch).is_some_and(|session| session.process == process) {
            state.sessions.all.remove(&epoch);
        }
    }

    /// A machine goes on that stood still: at this moment its process may do what it was about to do, and not know better.
    pub fn goes_on(&self, process: u64) {
        let mut state = self.state();
        state.note(self.began.elapsed(), &format!("{process} goes on"));
        state.processes.entry(process).or_default().went_on_at = Some(Instant::now());
    }

    /// A process claimed an instance.
    pub fn claimed(&self, process: u64, epoch: u64, record: &Record) {
        let now = self.now_ms();
        let mut state = self.state();
        if state.sessions.rules.is_none() {
            return;
        }
        let id = &record.row.id;
        let (found, taken_over) = state.sessions.claim(now, process, epoch, id);
        if taken_over {
            state.note(self.began.elapsed(), &format!("{process} takes {id} over"));
        }
        drop(state);
        self.violated_if(found);
    }

    /// A process gave its claim on an instance up, and was told that it did.
    pub fn released(&self, process: u64, epoch: u64, id: &InstanceId) {
        let now = self.now_ms();
        let mut state = self.state();
        let holder = state.sessions.claims.remove(id);
        let is_own = holder == Some(epoch) && state.sessions.is_of(now, process, epoch);
        drop(state);
        self.violated_if(
            (!is_own)
                .then(|| format!("process {process} gave {id} back under session {epoch}, and {holder:?} works on it")),
        );
    }

    /// A process claimed a making that is to be looked for.
    pub fn claimed_making(&self, process: u64, epoch: u64, making: Incarnation) {
        let now = self.now_ms();
        let found = self.state().sessions.claim_making(now, process, epoch, making);
        self.violated_if(found);
    }

    /// A request was put into the inbox.
    pub fn submitted(&self, number: u64, operation: &OperationId) {
        self.state().sessions.submitted.insert(number, operation.clone());
        self.note(&format!("{operation} is number {number} in the inbox"));
    }

    /// A request of the inbox that nobody has answered.
    #[must_use]
    pub fn unanswered(&self) -> Option<OperationId> {
        self.state().sessions.submitted.values().next().cloned()
    }

    pub(super) fn now_ms(&self) -> u128 {
        let elapsed = |clock: &Arc<SettableClock>| clock.now().since(BEGINNING);
        self.store_clock.get().map_or_else(|| self.began.elapsed(), elapsed).as_millis()
    }

    fn violated_if(&self, found: Option<String>) {
        if let Some(found) = found {
            self.violated(found);
        }
    }
}

impl Sessions {
    pub(super) fn are_shared(&self) -> bool {
        self.rules.is_some()
    }

    fn opened(&mut self, now: u128, process: u64, epoch: u64) {
        let Some(rules) = self.rules else { return };
        self.all.insert(epoch, Session { process, until: now + rules.lapses_after.as_millis(), has_lapsed: false });
    }

    /// The clock that shows this is about to be set.
    pub(super) fn clock_is_set(&mut self, now: u128, apart: Duration) {
        self.apart = apart;
        self.all.values_mut().for_each(|session| session.has_lapsed |= session.until <= now);
    }

    fn renewed(
        &mut self,
        now: u128,
        process: u64,
        epoch: u64,
        outcome: &Result<Renewal, StoreError>,
    ) -> Option<String> {
        let rules = self.rules?;
        let Ok(Renewal { in_force: told, .. }) = outcome else {
            let may_be_over = self.all.get(&epoch).is_none_or(|session| session.has_lapsed);
            return (!may_be_over && self.is_of(now, process, epoch))
                .then(|| format!("session {epoch} is in force, and was not renewed"));
        };
        if !self.is_of(now, process, epoch) {
            return Some(format!("session {epoch} of process {process} was over, and was renewed"));
        }
        self.all.insert(epoch, Session { process, until: now + rules.lapses_after.as_millis(), has_lapsed: false });
        // What is over is over for good when it is seen to be.
        self.all.retain(|_, session| now < session.until);
        self.all.retain(|epoch, session| !session.has_lapsed || told.contains(epoch));
        self.all.values_mut().for_each(|session| session.has_lapsed = false);
        let in_force: Vec<u64> = self.all.keys().copied().collect();
        (*told != in_force)
            .then(|| format!("the sessions in force are {in_force:?}, and process {process} was told {told:?}"))
    }

    /// Ends a session that is over, as something was taken from it; whether it is.
    fn end_lapsed(&mut self, now: u128, epoch: u64) -> bool {
        let is_over = self.all.get(&epoch).is_none_or(|session| session.has_lapsed || session.until <= now);
        if is_over {
            self.all.remove(&epoch);
        }
        is_over
    }

    /// Whether this is a session of this process, and in force.
    fn is_of(&self, now: u128, process: u64, epoch: u64) -> bool {
        self.all.get(&epoch).is_some_and(|session| session.process == process && now < session.until)
    }

    /// Whether a process has a session in force.
    pub(super) fn has_one(&self, now: u128, process: u64) -> bool {
        self.all.values().any(|session| session.process == process && now < session.until)
    }

    /// An instance is claimed: what must not be, and whether it was taken over.
    fn claim(&mut self, now: u128, process: u64, epoch: u64, id: &InstanceId) -> (Option<String>, bool) {
        let mut found = (!self.is_of(now, process, epoch))
            .then(|| format!("process {process} claimed {id} under session {epoch}, which is not in force"));
        let before = self.claims.insert(id.clone(), epoch).filter(|before| *before != epoch);
        let Some(before) = before else { return (found, false) };
        if !self.end_lapsed(now, before) {
            found = found.or(Some(format!("process {process} claimed {id}, which session {before} works on")));
        }
        self.takeovers.insert(id.clone(), Instant::now());
        (found, true)
    }

    fn claim_making(&mut self, now: u128, process: u64, epoch: u64, making: Incarnation) -> Option<String> {
        self.rules?;
        let before = self.makings.insert(making, epoch).filter(|before| *before != epoch);
        if !self.is_of(now, process, epoch) {
            return Some(format!("process {process} claimed {making} under session {epoch}, which is not in force"));
        }
        before
            .filter(|before| !self.end_lapsed(now, *before))
            .map(|before| format!("process {process} claimed making {making}, which session {before} looks for"))
    }

    /// The session under which this process works on what a call is for.
    fn works_under(&self, now: u128, process: u64, target: &Target, is_live: bool) -> Option<u64> {
        let claim = if is_live { self.claims.get(&target.id) } else { self.makings.get(&target.incarnation) };
        claim.copied().filter(|epoch| self.is_of(now, process, *epoch))
    }

    /// Takes in a change that was taken.
    pub(super) fn committed(
        &mut self,
        now: u128,
        process: u64,
        change: &Change,
        committed: &Committed,
    ) -> Option<String> {
        let mut found = self.check_requests(change);
        self.rules?;
        let epoch = change.epoch.unwrap_or_default();
        if !self.is_of(now, process, epoch) {
            found = found.or(Some(format!(
                "a write of process {process} under session {epoch} was taken, and nobody had the session any more"
            )));
        }
        for making in &change.incarnations {
            self.makings.remove(&making.incarnation);
        }
        let Some(write) = &change.instance else { return found };
        let id = write.id();
        let holder = self.claims.get(id).copied();
        let works = holder == Some(epoch);
        match change.claiming {
            Claiming::Keep | Claiming::Release if !works => {
                let told = format!("process {process} wrote {id} as who works on it, and {holder:?} does");
                found = found.or(Some(told));
            }
            Claiming::Take if matches!(committed.worker, Worker::Here | Worker::TakenOver) => {
                let (claimed, _) = self.claim(now, process, epoch, id);
                found = found.or(claimed);
            }
            _ => {}
        }
        if committed.worker == Worker::Here && self.claims.get(id) != Some(&epoch) {
            found = found.or(Some(format!("process {process} was told that it works on {id}, and it does not")));
        }
        if change.claiming == Claiming::Release || write.row().is_none() {
            self.claims.remove(id);
        }
        match write.row() {
            Some(row) => found.or_else(|| self.check_takeover(row)),
            None => {
                self.takeovers.remove(id);
                found
            }
        }
    }

    /// A request is accepted or refused once, and one of the inbox is answered once.
    fn check_requests(&mut self, change: &Change) -> Option<String> {
        for event in &change.events {
            if let EventKind::Accepted { operation, .. } | EventKind::Refused { operation, .. } = &event.what
                && !self.accepted.insert(operation.clone())
            {
                return Some(format!("{operation} was accepted or refused twice"));
            }
        }
        let number = change.answers?;
        let of = self.submitted.remove(&number);
        if !self.answered.insert(number) {
            return Some(format!("request {number} of the inbox was answered twice"));
        }
        let named = change.operations.iter().any(|operation| Some(&operation.id) == of.as_ref());
        (!named).then(|| format!("request {number} of the inbox, {of:?}, was answered as another operation"))
    }

    /// Who was taken over does not come to rest before late calls can be no more, unless it is looked at again then.
    fn check_takeover(&mut self, row: &InstanceRow) -> Option<String> {
        let rules = self.rules?;
        if !row.settled || row.parked || row.taken_over_at.is_some() {
            return None;
        }
        let after = self.takeovers.remove(&row.id)?.elapsed();
        let late = rules.lapses_after + rules.longest_call;
        (after + late / AHEAD + self.apart < late).then(|| {
            format!("{} came to rest {after:?} after it was taken over, as if no late call could come any more", row.id)
        })
    }
}

impl State {
    /// Whether this process is the one that works on what a call is for.
    pub(super) fn is_at_work(&self, now: u128, process: u64, target: &Target) -> bool {
        match self.sessions.are_shared() {
            false => process == self.newest,
            true => self.sessions.works_under(now, process, target, self.is_live(target)).is_some(),
        }
    }

    /// Where several share the store: who calls works on it, or cannot know better yet.
    pub(super) fn check_caller(
        &self,
        now: u128,
        process: u64,
        operation: &str,
        target: &Target,
        verb: bool,
    ) -> Option<String> {
        if !self.sessions.are_shared() {
            return None;
        }
        let (id, making) = (&target.id, target.incarnation);
        if !self.is_at_work(now, process, target) {
            // Who adopts a stranger looks at it first.
            let is_looked_at = self.is_strange(making) && !verb;
            return (!is_looked_at && !self.goes_on_now(process))
                .then(|| format!("process {process} calls {operation} of {id} {making}, and does not work on it"));
        }
        let also = |(other, it): (&u64, &super::Process)| {
            *other != process && it.verbs.get(&making).is_some_and(|epoch| self.sessions.is_of(now, *other, *epoch))
        };
        let twice = verb && self.processes.iter().any(also);
        twice.then(|| format!("{id} {making} runs twice at once: process {process} calls {operation}"))
    }

    /// Whether this process has a session; of one at a time that is not asked.
    pub(super) fn has_session(&self, now: u128, process: u64) -> bool {
        !self.sessions.are_shared() || self.sessions.has_one(now, process)
    }

    /// Under which session a call for this is made; 0: under none.
    pub(super) fn works_under(&self, now: u128, process: u64, target: &Target) -> u64 {
        self.sessions.works_under(now, process, target, self.is_live(target)).unwrap_or_default()
    }

    /// Whether its machine stood still until this moment.
    pub(super) fn goes_on_now(&self, process: u64) -> bool {
        self.processes.get(&process).is_some_and(|process| process.went_on_at == Some(Instant::now()))
    }

    /// Whether somebody who works on it waits for the answer to a verb for this making.
    pub(super) fn is_waited_for(&self, now: u128, making: Incarnation) -> bool {
        if !self.sessions.are_shared() {
            let newest = self.processes.get(&self.newest);
            return newest.is_some_and(|process| process.verbs.contains_key(&making));
        }
        let waits = |(number, process): (&u64, &super::Process)| {
            process.verbs.get(&making).is_some_and(|epoch| self.sessions.is_of(now, *number, *epoch))
        };
        self.processes.iter().any(waits)
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::{
        memory::{MemoryConfig, MemoryProvisioner},
        store::InstanceWrite,
        types::{CellName, DataId, DataSource, Generation},
    };

    use super::*;
    use crate::{
        customers::{id, spec, tenant},
        world::owner,
    };

    const LAPSES_AFTER: Duration = Duration::from_secs(10);

    /// Two processes, each with a session of its own number.
    fn witness() -> (Arc<Witness>, CellName) {
        let cell = CellName::new("cell").unwrap();
        let provider = MemoryProvisioner::new(MemoryConfig::default());
        let witness = Witness::new(owner(), [(cell.clone(), provider)].into(), 4);
        witness.expect_replicas(LAPSES_AFTER, LAPSES_AFTER);
        (1..=2).for_each(|number| witness.session_opened(number, number));
        (witness, cell)
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the store answers")]
    fn renewed(in_force: Vec<u64>) -> Result<Renewal, StoreError> {
        Ok(Renewal { in_force, now: None })
    }

    fn claim(witness: &Witness, epoch: u64) -> Option<String> {
        let mut state = witness.state();
        state.sessions.claim(witness.now_ms(), epoch, epoch, &id(1)).0
    }

    fn told(witness: &Witness, what: &str) -> bool {
        witness.violation().is_some_and(|told| told.contains(what))
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_claims_what_a_session_in_force_works_on() {
        let (witness, _) = witness();
        assert_eq!(claim(&witness, 1), None);
        assert_eq!(claim(&witness, 1), None, "again");
        assert!(claim(&witness, 2).is_some_and(|told| told.contains("works on")));
        let (witness, _) = self::witness();
        assert_eq!(claim(&witness, 1), None);
        tokio::time::advance(LAPSES_AFTER / 2).await;
        witness.session_renewed(2, 2, &renewed(vec![1, 2]));
        tokio::time::advance(LAPSES_AFTER / 2).await;
        assert_eq!(claim(&witness, 2), None, "it lapsed over it");
        assert!(claim(&witness, 1).is_some_and(|told| told.contains("not in force")));
        assert_eq!(witness.violation(), None);
        witness.session_renewed(1, 1, &renewed(vec![1, 2]));
        assert!(told(&witness, "was over"), "{:?}", witness.violation());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_gives_back_what_another_one_works_on() {
        let (witness, _) = witness();
        assert_eq!(claim(&witness, 1), None);
        witness.released(1, 1, &id(1));
        assert_eq!((claim(&witness, 2), witness.violation()), (None, None), "it was given back");
        witness.released(1, 1, &id(1));
        assert!(told(&witness, "gave i1 back"), "{:?}", witness.violation());
    }

    /// The first session lapses over its claim, as the clock is set forward; the second one takes something, or not; and the clock is set
    /// back.
    fn with_clock_set_back(takes: bool) -> Arc<Witness> {
        let (witness, _) = witness();
        let clock = Arc::new(SettableClock::starting_at(BEGINNING));
        witness.go_by(Arc::clone(&clock));
        assert_eq!(claim(&witness, 1), None);
        witness.store_clock_is_set();
        clock.set_forward(LAPSES_AFTER);
        witness.session_opened(2, 3);
        if takes {
            let claimed = witness.state().sessions.claim(witness.now_ms(), 2, 3, &id(1));
            assert_eq!(claimed, (None, true));
        }
        witness.store_clock_is_set();
        clock.set_back(LAPSES_AFTER);
        witness
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_from_who_lapsed_ends_it_whatever_the_clock_shows_later() {
        let witness = with_clock_set_back(true);
        witness.session_renewed(1, 1, &Err(StoreError::SessionLost));
        assert_eq!(witness.violation(), None);
        witness.session_renewed(1, 1, &renewed(vec![1, 2, 3]));
        assert!(told(&witness, "was over"), "{:?}", witness.violation());
        // Of whom nothing was taken, that is as the store says.
        for outcome in [renewed(vec![1, 2, 3]), Err(StoreError::SessionLost)] {
            let witness = with_clock_set_back(false);
            witness.session_renewed(1, 1, &outcome);
            assert_eq!(witness.violation(), None);
        }
        // As soon as somebody was told that it is in force, it is.
        let witness = with_clock_set_back(false);
        witness.session_renewed(2, 3, &renewed(vec![1, 2, 3]));
        assert_eq!(witness.violation(), None);
        witness.session_renewed(1, 1, &Err(StoreError::SessionLost));
        assert!(told(&witness, "is in force, and was not renewed"), "{:?}", witness.violation());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_work_on_it_may_call_only_when_its_machine_goes_on() {
        let target = Target {
            id: id(1),
            tenant: tenant(1),
            incarnation: Incarnation::new(1, 7),
            generation: Generation(1),
            spec: Arc::new(spec("1.0")),
            data: DataSource::Fresh(DataId::from_random(7)),
        };
        for goes_on in [true, false] {
            let (witness, cell) = witness();
            if goes_on {
                witness.goes_on(1);
            }
            let _ = witness.calls(1, &cell, "create", &target);
            assert_eq!(told(&witness, "does not work on it"), !goes_on, "{:?}", witness.violation());
            let (witness, cell) = self::witness();
            if goes_on {
                witness.goes_on(1);
            }
            tokio::time::advance(LAPSES_AFTER).await;
            let _ = witness.calls_cell(1, &cell, "maintain");
            assert!(told(&witness, "without a session"), "a moment later it is to know");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_the_inbox_is_answered_once_and_by_whose_session_is_in_force() {
        let commit = |witness: &Witness, process, change: &Change| {
            let committed = Committed { version: 1, position: 1, worker: Worker::Nobody };
            witness.state().sessions.committed(witness.now_ms(), process, change, &committed)
        };
        let (witness, _) = witness();
        witness.submitted(1, &OperationId::from_parts(1, 1));
        let answers = Change { epoch: Some(1), answers: Some(1), ..Change::default() };
        assert!(commit(&witness, 1, &answers).is_some_and(|told| told.contains("as another operation")));
        assert_eq!(witness.unanswered(), None);
        assert!(commit(&witness, 1, &answers).is_some_and(|told| told.contains("answered twice")));
        let writes = Change { epoch: Some(1), ..Change::default() };
        assert_eq!(commit(&witness, 1, &writes), None);
        assert!(commit(&witness, 2, &writes).is_some_and(|told| told.contains("had the session")), "another's");
        let write = Some(InstanceWrite::Delete { id: id(1), expected: 1 });
        let works = Change { instance: write, claiming: Claiming::Release, ..writes.clone() };
        assert!(commit(&witness, 1, &works).is_some_and(|told| told.contains("as who works on it")));
        tokio::time::advance(LAPSES_AFTER).await;
        assert!(commit(&witness, 1, &writes).is_some_and(|told| told.contains("had the session")));
    }
}
