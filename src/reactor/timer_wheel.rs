//! Timeouts that cost nothing while bytes move.
//!
//! A connection that is active would push its deadline forward with every message. Moving an entry in an ordered
//! timer queue that often is work; so nothing is moved. Activity only notes the time in the connection, and each
//! connection has one entry in a wheel of time slots. When the entry's slot comes due, the owner is asked when the
//! connection is *really* due: if later, the entry moves there, and only if not has the time run out. That is at
//! most one move per connection and timeout, however many messages there were in between (G. Varghese and
//! T. Lauck, "Hashed and hierarchical timing wheels", SOSP 1987, with lazy deletion).
//!
//! The wheel knows slab keys and milliseconds. It does not know connections, nor the clock.

/// Milliseconds since the reactor began.
pub type Millis = u64;

/// The number of slots on the wheel; a timeout is honoured to within a slot, 1/64 of its length.
const SLOTS: u64 = 64;

/// A wheel for deadlines that lie at most one timeout ahead.
#[derive(Debug)]
pub struct TimerWheel {
    /// Milliseconds covered by one slot.
    width: Millis,
    /// One more slot than a timeout spans, so that the slot being emptied is never the one being filled.
    slots: Vec<Vec<u32>>,
    /// The number of the next slot to come due, counted from the beginning and not wrapped.
    next: u64,
    /// Whether a key has its entry on the wheel. One entry a key is enough, whichever connection put it there: the
    /// owner is asked about the key's present connection when it comes due.
    armed: Vec<bool>,
    entries: usize,
}

impl TimerWheel {
    /// A wheel for deadlines up to `timeout` milliseconds ahead.
    pub fn new(timeout: Millis) -> Self {
        let width = timeout.div_ceil(SLOTS).max(1);
        let slots = (0..timeout.div_ceil(width) + 2).map(|_| Vec::new()).collect();
        TimerWheel { width, slots, next: 0, armed: Vec::new(), entries: 0 }
    }

    /// Makes sure that `key` will be asked about at `due` or before. Nothing happens if it has an entry already.
    pub fn arm(&mut self, key: usize, due: Millis, now: Millis) {
        if self.entries == 0 {
            self.next = self.next.max(now / self.width); // skip what went by while there was nothing to wait for
        }
        if self.armed.len() <= key {
            self.armed.resize(key + 1, false);
        }
        if !self.armed[key] {
            self.armed[key] = true;
            self.place(key, due);
        }
    }

    /// Empties the slots that are due at `now`. For each key in them, `really_due` says when its connection is due,
    /// or `None` if it needs no deadline any more or has just been dealt with.
    pub fn expire(&mut self, now: Millis, mut really_due: impl FnMut(usize) -> Option<Millis>) {
        // A slot is due when its last millisecond has passed, so nobody is asked too early.
        while self.entries > 0 && (self.next + 1) * self.width <= now {
            let position = (self.next % self.slots.len() as u64) as usize;
            self.next += 1;
            let keys = std::mem::take(&mut self.slots[position]);
            self.entries -= keys.len();
            for key in keys {
                let key = key as usize;
                match really_due(key) {
                    Some(due) => self.place(key, due),
                    None => self.armed[key] = false,
                }
            }
        }
    }

    /// When the next slot with an entry comes due.
    pub fn next_due(&self) -> Option<Millis> {
        if self.entries == 0 {
            return None;
        }
        let count = self.slots.len() as u64;
        (self.next..self.next + count)
            .find(|slot| !self.slots[(slot % count) as usize].is_empty())
            .map(|slot| (slot + 1) * self.width)
    }

    fn place(&mut self, key: usize, due: Millis) {
        // Farther ahead than the wheel reaches cannot be placed exactly; the farthest slot asks again.
        let farthest = self.next + self.slots.len() as u64 - 1;
        let slot = (due / self.width).clamp(self.next, farthest);
        let position = (slot % self.slots.len() as u64) as usize;
        self.slots[position].push(u32::try_from(key).expect("fewer than 2^32 descriptors"));
        self.entries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expires at `now` and returns the keys whose time, as `due` has it, had run out.
    fn expired(wheel: &mut TimerWheel, now: Millis, due: &[Millis]) -> Vec<usize> {
        let mut out = Vec::new();
        wheel.expire(now, |key| {
            if due[key] > now {
                return Some(due[key]);
            }
            out.push(key);
            None
        });
        out
    }

    #[test]
    fn nobody_expires_early_and_nobody_more_than_a_slot_late() {
        for timeout in [1, 10, 63, 64, 65, 1000, 60_000] {
            let mut wheel = TimerWheel::new(timeout);
            let start = 12_345;
            wheel.arm(0, start + timeout, start);
            let mut at = start;
            while expired(&mut wheel, at, &[start + timeout]).is_empty() {
                at += 1;
                assert!(at <= start + timeout + wheel.width, "timeout {timeout}");
            }
            assert!(at >= start + timeout, "timeout {timeout}: expired at +{}", at - start);
        }
    }

    #[test]
    fn activity_defers_without_touching_the_wheel() {
        let mut wheel = TimerWheel::new(100);
        let mut due = [100];
        wheel.arm(0, due[0], 0);
        for now in 0..10_000 {
            due[0] = now + 100; // a message every millisecond
            assert!(expired(&mut wheel, now, &due).is_empty());
        }
        assert_eq!(wheel.entries, 1);
        assert_eq!(expired(&mut wheel, 10_200, &due), [0]);
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn next_due_is_when_expire_has_something_to_ask() {
        let mut wheel = TimerWheel::new(6400);
        wheel.arm(3, 6400, 0);
        let next = wheel.next_due().unwrap();
        assert!(expired(&mut wheel, next - 1, &[0; 4]).is_empty());
        assert_eq!(expired(&mut wheel, next, &[0; 4]), [3]);
    }

    #[test]
    fn a_reused_key_has_one_entry() {
        let mut wheel = TimerWheel::new(100);
        for turn in 0..1000 {
            wheel.arm(7, turn + 100, turn);
        }
        assert_eq!(wheel.entries, 1);
    }

    #[test]
    fn a_long_sleep_catches_up() {
        let mut wheel = TimerWheel::new(1000);
        wheel.arm(0, 1000, 0);
        wheel.arm(1, 500, 0);
        let mut out = expired(&mut wheel, 1_000_000_000, &[1000, 500]);
        out.sort();
        assert_eq!(out, [0, 1]);
        wheel.arm(0, 1_000_000_500, 1_000_000_000);
        assert!(expired(&mut wheel, 1_000_000_400, &[1_000_000_500, 0]).is_empty());
        assert_eq!(expired(&mut wheel, 1_000_000_600, &[1_000_000_500, 0]), [0]);
    }
}
