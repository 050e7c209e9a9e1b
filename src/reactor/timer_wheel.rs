//! Timeouts that cost nothing while bytes move.
//!
//! A connection that is active would push its deadline forward with every message. Moving an entry in an ordered timer
//! queue that often is work; so nothing is moved. Each connection has one entry in a wheel of time slots. When the
//! entry's slot comes due, the owner is asked when the connection is *really* due: if later, the entry moves there, and
//! only if not has the time run out. That is at most one move per connection and timeout, however many messages there
//! were in between (G. Varghese and T. Lauck, "Hashed and hierarchical timing wheels", SOSP 1987, with lazy deletion).
//!
//! A deadline that moves *forward* in time therefore costs nothing; one that comes *closer* than the entry gets another
//! entry in an earlier slot, and the later one is ignored when it comes due.

/// Milliseconds since the reactor began; on the wheel of a protocol's deadlines, its ticks.
pub type Millis = u64;

/// A key without an entry.
const NOT_ARMED: u16 = u16::MAX;

/// A wheel of time slots with slab keys in them. A deadline farther ahead than the wheel reaches is asked about once a
/// revolution.
#[derive(Debug)]
pub(super) struct TimerWheel {
    /// Milliseconds covered by one slot: a deadline is honoured to within that, and never early.
    width: Millis,
    slots: Vec<Vec<u32>>,
    /// A bit for each slot that has entries.
    occupied: Vec<u64>,
    /// The number of the next slot to come due, counted from the beginning and not wrapped.
    next: u64,
    /// The slot in which each key's entry is, as a position on the wheel.
    armed: Vec<u16>,
    entries: usize,
}

impl TimerWheel {
    /// A wheel of `count` slots, each of `width` milliseconds.
    pub fn new(width: Millis, count: u16) -> Self {
        assert!(width > 0 && count > 2 && count < NOT_ARMED);
        let slots = (0..count).map(|_| Vec::new()).collect();
        let occupied = vec![0; usize::from(count).div_ceil(64)];
        TimerWheel { width, slots, occupied, next: 0, armed: Vec::new(), entries: 0 }
    }

    /// A wheel for deadlines that lie at most `timeout` milliseconds ahead, honoured to within 1/64 of that.
    pub fn for_timeout(timeout: Millis) -> Self {
        let width = timeout.div_ceil(64).max(1);
        // The slot that is being emptied, and the one that a deadline at the very end falls into, come on top.
        TimerWheel::new(width, (timeout.div_ceil(width) + 3) as u16)
    }

    /// Makes sure that `key` will be asked about at `due`, to within a slot, or before.
    pub fn arm(&mut self, key: usize, due: Millis, now: Millis) {
        if self.entries == 0 {
            self.next = self.next.max(now / self.width); // skip what went by while there was nothing to wait for
        }
        if self.armed.len() <= key {
            self.armed.resize(key + 1, NOT_ARMED);
        }
        let (armed, slot) = (self.armed[key], self.slot(due));
        if armed == NOT_ARMED || self.ahead(armed) > slot - self.next {
            self.insert(key as u32, slot);
        }
    }

    /// Empties the slots that are due at `now`. For each key in them, `really_due` says when its connection is due, or
    /// `None` if it needs no deadline any more or has just been dealt with.
    pub fn expire(&mut self, now: Millis, mut really_due: impl FnMut(usize) -> Option<Millis>) {
        // A slot is due when its last millisecond has passed, so no key is asked about too early.
        while self.entries > 0 && (self.next + 1) * self.width <= now {
            let position = self.position(self.next);
            self.next += 1;
            let keys = std::mem::take(&mut self.slots[position]);
            self.occupied[position / 64] &= !(1 << (position % 64));
            self.entries -= keys.len();
            for key in keys {
                if usize::from(self.armed[key as usize]) != position {
                    continue; // it has an earlier entry since, or none
                }
                self.armed[key as usize] = NOT_ARMED;
                if let Some(due) = really_due(key as usize) {
                    self.insert(key, self.slot(due));
                }
            }
        }
    }

    /// Whether nothing is waited for.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// When the next slot with an entry comes due.
    pub fn next_due(&self) -> Option<Millis> {
        if self.is_empty() {
            return None;
        }
        let count = self.slots.len();
        let from = self.position(self.next);
        // Word by word from the next slot on, and once around.
        let (first, mask) = (from / 64, !0u64 << (from % 64));
        let words = self.occupied.len();
        let position = (0..=words).find_map(|step| {
            let index = (first + step) % words;
            let word = match step {
                0 => self.occupied[index] & mask,
                _ if step == words => self.occupied[index] & !mask,
                _ => self.occupied[index],
            };
            (word != 0).then(|| index * 64 + word.trailing_zeros() as usize)
        })?;
        let ahead = (position + count - from) % count;
        Some((self.next + ahead as u64 + 1) * self.width)
    }

    /// The slot for a deadline: the one at whose end it has just passed. The farthest one if it lies beyond.
    fn slot(&self, due: Millis) -> u64 {
        // One short of a revolution, so that the slot being emptied is never the one being filled.
        let farthest = self.next + self.slots.len() as u64 - 2;
        (due.saturating_sub(1) / self.width).clamp(self.next, farthest)
    }

    fn position(&self, slot: u64) -> usize {
        (slot % self.slots.len() as u64) as usize
    }

    /// How many slots a position lies ahead of the next one to come due.
    fn ahead(&self, position: u16) -> u64 {
        let count = self.slots.len();
        ((usize::from(position) + count - self.position(self.next)) % count) as u64
    }

    fn insert(&mut self, key: u32, slot: u64) {
        let position = self.position(slot);
        self.armed[key as usize] = position as u16;
        self.slots[position].push(key);
        self.occupied[position / 64] |= 1 << (position % 64);
        self.entries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn deadline_is_never_early_and_one_slot_late() {
        for timeout in [1, 10, 63, 64, 65, 1000, 60_000] {
            let mut wheel = TimerWheel::for_timeout(timeout);
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
        let mut wheel = TimerWheel::for_timeout(100);
        let mut due = [100];
        wheel.arm(0, due[0], 0);
        for now in 0..10_000 {
            due[0] = now + 100; // a message every millisecond
            wheel.arm(0, due[0], now);
            assert!(expired(&mut wheel, now, &due).is_empty());
        }
        assert_eq!(wheel.entries, 1);
        assert_eq!(expired(&mut wheel, 10_200, &due), [0]);
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn next_due_is_when_expire_has_work() {
        let mut wheel = TimerWheel::for_timeout(6400);
        wheel.arm(3, 6400, 0);
        let next = wheel.next_due().unwrap();
        assert!(expired(&mut wheel, next - 1, &[0; 4]).is_empty());
        assert_eq!(expired(&mut wheel, next, &[0; 4]), [3]);
    }

    #[test]
    fn a_reused_key_has_one_entry() {
        let mut wheel = TimerWheel::for_timeout(100);
        for turn in 0..1000 {
            wheel.arm(7, turn + 100, turn);
        }
        assert_eq!(wheel.entries, 1);
    }

    #[test]
    fn a_long_sleep_catches_up() {
        let mut wheel = TimerWheel::for_timeout(1000);
        wheel.arm(0, 1000, 0);
        wheel.arm(1, 500, 0);
        let mut out = expired(&mut wheel, 1_000_000_000, &[1000, 500]);
        out.sort();
        assert_eq!(out, [0, 1]);
        wheel.arm(0, 1_000_000_500, 1_000_000_000);
        assert!(expired(&mut wheel, 1_000_000_400, &[1_000_000_500, 0]).is_empty());
        assert_eq!(expired(&mut wheel, 1_000_000_600, &[1_000_000_500, 0]), [0]);
    }

    proptest! {
        /// Deadlines that come, move either way and go: each is met within a slot after it, and no sleep passes it.
        #[test]
        fn any_deadlines_are_met_in_time(
            width in 1u64..8,
            changes in prop::collection::vec((0usize..6, prop::option::of(0u64..200), 0u64..40), 1..80),
        ) {
            let mut wheel = TimerWheel::new(width, 16);
            let mut due = [None::<Millis>; 6];
            let mut now = 1000;
            let advance = |wheel: &mut TimerWheel, due: &mut [Option<Millis>; 6], now: u64| {
                wheel.expire(now, |key| {
                    let at = due[key]?;
                    if at <= now {
                        due[key] = None;
                    }
                    due[key]
                });
                for at in due.iter().flatten() {
                    assert!(now < at + width, "{at} was missed at {now}");
                    let sleeps_until = wheel.next_due().expect("somebody waits");
                    assert!(sleeps_until <= (at / width + 1) * width, "asleep until {sleeps_until}, and {at} is due");
                }
            };
            for (key, after, pass) in changes {
                due[key] = after.map(|after| now + after);
                if let Some(at) = due[key] {
                    wheel.arm(key, at, now);
                }
                for _ in 0..pass {
                    now += 1;
                    advance(&mut wheel, &mut due, now);
                }
            }
            prop_assert!(wheel.entries <= 6 * 16, "stale entries do not pile up");
        }
    }
}
