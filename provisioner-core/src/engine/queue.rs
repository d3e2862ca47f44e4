//! Which instances of a cell to work on next: a bounded window over what is due in the store.
//!
//! One slot per instance: it waits once, runs once, and what arrives while it runs waits for its end. What finds no room
//! is not lost: the store knows that it is due, and the window is filled from there.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    store::{Lane, Record},
    types::{InstanceId, Timestamp},
};

/// How many instances a cell's window holds, by lane.
const WINDOW_MAX: usize = 1024;
/// How few it may hold: less would cost a query for each handful.
const ROOM_MIN: usize = 64;
/// Every so many-th turn is the background lane's: a steady stream of people must not starve it.
const BACKGROUND_TURN: u64 = 4;

/// A record that is at hand because a session of ours claimed it.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) epoch: u64,
    pub(crate) record: Record,
}

/// An instance to work on, with its record where that is at hand.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: InstanceId,
    pub(crate) record: Option<Claimed>,
}

#[derive(Debug)]
enum Slot {
    Waiting { lane: Lane, record: Option<Claimed> },
    Running { lane: Lane, again: Option<Again> },
}

/// What arrived for an instance while it ran.
#[derive(Debug)]
struct Again {
    lane: Lane,
    record: Option<Claimed>,
}

/// The window of one cell.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    slots: BTreeMap<InstanceId, Slot>,
    waiting: [VecDeque<InstanceId>; 2],
    running: [usize; 2],
    /// Whether the store may have due rows of a lane that are not in the window.
    behind: [bool; 2],
    /// How many were taken so far.
    popped: u64,
    /// The earliest time at which something is due by itself, of those that were told.
    due: Option<Timestamp>,
    /// How many instances of a lane may wait.
    room: usize,
}

impl Queue {
    /// A window for so many instances a lane, within bounds, that is yet to be filled from the store.
    pub(crate) fn with_room(room: usize) -> Self {
        Self { behind: [true; 2], room: room.clamp(ROOM_MIN, WINDOW_MAX), ..Self::default() }
    }

    /// Whether one more may wait in a lane.
    pub(crate) fn has_room(&self, lane: Lane) -> bool {
        self.waiting[lane as usize].len() < self.room
    }

    /// Somebody says that an instance is worth looking at. What finds no room is found in the store later, so it must be
    /// due there, or be a hint that may be lost.
    pub(crate) fn offer(&mut self, id: InstanceId, lane: Lane, record: Option<Claimed>) {
        match self.slots.get_mut(&id) {
            Some(Slot::Running { again, .. }) => {
                let lane = again.as_ref().map_or(lane, |again| again.lane.min(lane));
                *again = Some(Again { lane, record });
            }
            Some(Slot::Waiting { lane: waits_in, record: kept }) => {
                *kept = record;
                // Only ever to the faster lane; the place in the slower one is passed over when its turn comes.
                if lane < *waits_in {
                    *waits_in = lane;
                    self.waiting[lane as usize].push_back(id);
                }
            }
            None => self.push(id, lane, record),
        }
    }

    /// Rows that the store says are due, as of a claim made by who also calls [`finish`](Self::finish). What runs or
    /// waits already is passed over: the row is due because its work is not recorded yet.
    pub(crate) fn offer_claimed(&mut self, epoch: u64, records: Vec<Record>, lane: Lane) {
        for record in records {
            let id = record.row.id.clone();
            if !self.slots.contains_key(&id) {
                self.push(id, lane, Some(Claimed { epoch, record }));
            }
        }
    }

    fn push(&mut self, id: InstanceId, lane: Lane, record: Option<Claimed>) {
        if !self.has_room(lane) {
            // The store may know it in the other lane.
            self.behind = [true; 2];
            return;
        }
        self.waiting[lane as usize].push_back(id.clone());
        self.slots.insert(id, Slot::Waiting { lane, record });
    }

    /// How many rows to ask the store for, when it may have some that are not in the window and there is room for them.
    pub(crate) fn wanted(&self, lane: Lane) -> Option<usize> {
        let waiting = self.waiting[lane as usize].len();
        // Asking for few rows at a time would cost a query each.
        (self.behind[lane as usize] && waiting < self.room / 2).then(|| self.room - waiting)
    }

    /// Says whether the store may have more.
    pub(crate) fn set_behind(&mut self, lane: Lane, behind: bool) {
        self.behind[lane as usize] = behind;
    }

    /// The next instance to work on, if fewer than `calls_max` run: interactive ones first, but for every fourth turn.
    /// The background lane leaves a quarter of the places free, so that a backlog never keeps a person waiting.
    pub(crate) fn pop(&mut self, calls_max: usize) -> Option<Work> {
        let running: usize = self.running.iter().sum();
        if running >= calls_max {
            return None;
        }
        let background_max = (calls_max - calls_max / 4).max(1);
        let mut lanes = Lane::ALL;
        if self.popped % BACKGROUND_TURN == BACKGROUND_TURN - 1 {
            lanes.reverse();
        }
        for lane in lanes {
            if lane == Lane::Background && self.running[lane as usize] >= background_max {
                continue;
            }
            while let Some(id) = self.waiting[lane as usize].pop_front() {
                // Passed over: it moved to the faster lane, and may have run since.
                let Some(Slot::Waiting { lane: waits_in, record }) = self.slots.get_mut(&id) else { continue };
                if *waits_in != lane {
                    continue;
                }
                let record = record.take();
                self.slots.insert(id.clone(), Slot::Running { lane, again: None });
                self.running[lane as usize] += 1;
                self.popped += 1;
                return Some(Work { id, record });
            }
        }
        None
    }

    /// An instance's work ended. What arrived meanwhile waits now.
    pub(crate) fn finish(&mut self, id: &InstanceId) {
        if let Some(Slot::Running { lane, again }) = self.slots.remove(id) {
            self.running[lane as usize] -= 1;
            if let Some(again) = again {
                self.push(id.clone(), again.lane, again.record);
            }
        }
    }

    /// Something is due at this time.
    pub(crate) fn note_due(&mut self, due: Timestamp) {
        self.due = Some(self.due.map_or(due, |earliest| earliest.min(due)));
    }

    /// The earliest time that was told since this was asked last.
    pub(crate) fn take_due(&mut self) -> Option<Timestamp> {
        self.due.take()
    }

    /// How many wait and how many run.
    pub(crate) fn depth(&self) -> (usize, usize) {
        (self.waiting.iter().map(VecDeque::len).sum(), self.running.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> InstanceId {
        InstanceId::new(format!("i{number}")).unwrap()
    }

    fn pop(queue: &mut Queue) -> Option<String> {
        queue.pop(8).map(|work| work.id.to_string())
    }

    #[test]
    fn an_instance_waits_once_and_never_runs_twice_at_once() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        queue.offer(id(1), Lane::Background, None);
        queue.offer(id(1), Lane::Background, None);
        assert_eq!(pop(&mut queue).unwrap(), "i1");
        queue.offer(id(1), Lane::Interactive, None);
        queue.offer(id(1), Lane::Background, None);
        assert_eq!(pop(&mut queue), None, "it runs");
        queue.finish(&id(1));
        assert_eq!(pop(&mut queue).unwrap(), "i1", "what arrived meanwhile");
        queue.finish(&id(1));
        assert_eq!(pop(&mut queue), None);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn interactive_work_goes_first_and_a_waiting_instance_can_be_hurried() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        for number in 1..=3 {
            queue.offer(id(number), Lane::Background, None);
        }
        queue.offer(id(4), Lane::Interactive, None);
        queue.offer(id(3), Lane::Interactive, None);
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, ["i4", "i3", "i1", "i2"]);
    }

    #[test]
    fn a_stream_of_people_does_not_starve_the_background() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        queue.offer(id(1), Lane::Background, None);
        for number in 2..8 {
            queue.offer(id(number), Lane::Interactive, None);
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order.iter().position(|name| name == "i1"), Some(3), "{order:?}");
    }

    #[test]
    fn a_backlog_leaves_room_for_people() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        for number in 0..8 {
            queue.offer(id(number), Lane::Background, None);
        }
        assert_eq!(std::iter::from_fn(|| queue.pop(4)).count(), 3);
        queue.offer(id(100), Lane::Interactive, None);
        assert_eq!(queue.pop(4).unwrap().id, id(100));
        assert!(queue.pop(4).is_none());
    }

    #[test]
    fn more_may_be_hurried_than_the_window_holds() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        for round in 0..2 {
            for number in 0..WINDOW_MAX {
                queue.offer(id(number + round * WINDOW_MAX), Lane::Background, None);
            }
            for number in 0..WINDOW_MAX {
                queue.offer(id(number + round * WINDOW_MAX), Lane::Interactive, None);
            }
            assert_eq!(queue.wanted(Lane::Interactive), None);
        }
        let taken = std::iter::from_fn(|| queue.pop(usize::MAX)).count();
        assert!(taken >= WINDOW_MAX, "{taken}");
        assert!(queue.wanted(Lane::Interactive).is_some());
    }

    #[test]
    fn the_window_is_bounded_and_says_when_the_store_has_more() {
        let mut queue = Queue::with_room(WINDOW_MAX);
        queue.set_behind(Lane::Background, false);
        for number in 0..=WINDOW_MAX {
            queue.offer(id(number), Lane::Background, None);
        }
        assert_eq!(queue.depth().0, WINDOW_MAX);
        assert_eq!(queue.wanted(Lane::Background), None, "no room yet");
        for _ in 0..=WINDOW_MAX / 2 {
            let work = queue.pop(usize::MAX).unwrap();
            queue.finish(&work.id);
        }
        assert!(queue.wanted(Lane::Background).is_some());
    }
}
