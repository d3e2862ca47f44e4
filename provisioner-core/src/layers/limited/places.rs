//! Places for calls, handed out by turns.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::context::Priority;

/// Every so many-th turn is a background call's while some of them wait: a steady stream of people must not starve them.
const BACKGROUND_TURN: u64 = 4;

/// So many calls at once, and who waits for a place among them: one line for each priority.
///
/// Two semaphores would be shorter, but a semaphore serves whoever came first: people would wait behind the background.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    /// What the background can have: it leaves a quarter free, so that a backlog never keeps a person waiting.
    background_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: [usize; 2],
    /// Who waits, in the order in which they came.
    waiting: [BTreeMap<u64, oneshot::Sender<()>>; 2],
    tickets: u64,
    /// How many of those who waited have had their turn.
    turns: u64,
}

/// A place, or the wait for one. Dropping it gives either up.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    line: Priority,
    ticket: u64,
}

impl Places {
    /// So many places, 1 at least.
    pub(super) fn new(max: usize) -> Arc<Self> {
        let max = max.max(1);
        Arc::new(Self { max, background_max: (max - max / 4).max(1), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, and what to wait for before it may be used, if that is not at once.
    pub(super) fn enter(self: &Arc<Self>, line: Priority) -> (Place, Option<oneshot::Receiver<()>>) {
        let mut state = self.state();
        let place = Place { places: Arc::clone(self), line, ticket: state.tickets };
        state.tickets += 1;
        // Whoever may run does not wait, so nobody of this line does: it is no jumping of the queue.
        if self.may_run(&state, line) {
            state.running[line as usize] += 1;
            return (place, None);
        }
        let (sender, turn) = oneshot::channel();
        state.waiting[line as usize].insert(place.ticket, sender);
        (place, Some(turn))
    }

    fn may_run(&self, state: &State, line: Priority) -> bool {
        let [people, background] = state.running;
        people + background < self.max && (line == Priority::Interactive || background < self.background_max)
    }

    /// Hands out the places that are free: to people first, but for every fourth turn.
    fn hand_out(&self, state: &mut State) {
        loop {
            let mut lines = [Priority::Interactive, Priority::Background];
            if state.turns % BACKGROUND_TURN == BACKGROUND_TURN - 1 {
                lines.reverse();
            }
            let next = lines.into_iter().filter(|line| self.may_run(state, *line));
            let waits = |line: &Priority| !state.waiting[*line as usize].is_empty();
            let Some(line) = next.into_iter().find(waits) else { return };
            let Some((_, turn)) = state.waiting[line as usize].pop_first() else { return };
            state.running[line as usize] += 1;
            state.turns += 1;
            // Who gives up at this moment gives the place back when it is dropped.
            let _ = turn.send(());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = self.line as usize;
        let mut state = self.places.state();
        // Who still waits has nothing to give back.
        if state.waiting[line].remove(&self.ticket).is_none() {
            state.running[line] -= 1;
            self.places.hand_out(&mut state);
        }
    }
}
