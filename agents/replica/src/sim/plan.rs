//! What goes wrong in a run, and when: all of it follows from the seed, before the run begins.

use super::random::Random;

/// Something that happens to machines and links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends; its machine goes on.
    Exit(usize),
    /// The machine loses its power between two events.
    Crash(usize),
    /// It loses its power in the middle of an event, after so many writes and syncs.
    CrashAfter {
        who: usize,
        steps: u64,
    },
    Boot(usize),
    /// Its disks are full after so many more writes.
    DiskFull {
        who: usize,
        steps: u64,
    },
    /// There is less room than a ledger wants before it begins a block.
    LowSpace(usize),
    RoomMade(usize),
    /// Those of the set hear only each other.
    Partition(u64),
    Cut {
        from: usize,
        to: usize,
    },
    /// All links work again.
    Healed,
    Weather(Weather),
    /// The process is stopped and goes on later.
    Freeze {
        who: usize,
        for_ms: u64,
    },
    Clock {
        who: usize,
        ahead_ms: i64,
    },
    /// From now on nothing more goes wrong.
    Calm,
}

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    pub(crate) lost_percent: u64,
    pub(crate) twice_percent: u64,
    /// Of a message, beyond what the distance takes.
    pub(crate) late_ms: u64,
}

pub(crate) const FINE: Weather = Weather { lost_percent: 0, twice_percent: 0, late_ms: 3 };

/// What a seed asks for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) validators: usize,
    /// One more replica, that only follows at first.
    pub(crate) spare: bool,
    /// So many of the last validators lie.
    pub(crate) liars: usize,
    /// When the validators are changed, and whether the spare one replaces another.
    pub(crate) change: Option<(u64, bool)>,
    /// Each machine's clock, ahead or behind.
    pub(crate) clocks_ms: Vec<i64>,
    pub(crate) faults: Vec<(u64, Fault)>,
    pub(crate) calm_at_ms: u64,
}

const DAY_MS: i64 = 86_400_000;

impl Plan {
    pub(crate) fn new(random: &mut Random) -> Self {
        let validators = if random.percent(15) { 7 } else { 4 };
        let spare = random.percent(35);
        let most = (validators - 1) / 3;
        let liars = if random.percent(50) { random.between(1, most as u64) as usize } else { 0 };
        let change =
            (spare && random.percent(75)).then(|| (random.between(3_000, 15_000), random.percent(50)));
        let count = validators + usize::from(spare);
        let mut clocks_ms: Vec<i64> = (0..count).map(|_| random.between(0, 4_000) as i64 - 2_000).collect();
        // A clock that is days off is a fault of its own: it takes a liar's place.
        if liars < most && random.percent(25) {
            let days = random.between(1, 30) as i64 * DAY_MS;
            clocks_ms[0] = if random.percent(50) { days } else { -days };
        }
        let calm_at_ms = random.between(15_000, 45_000);
        let faults = Self::faults(random, count, calm_at_ms);
        Self { validators, spare, liars, change, clocks_ms, faults, calm_at_ms }
    }

    fn faults(random: &mut Random, count: usize, calm_at_ms: u64) -> Vec<(u64, Fault)> {
        let mut faults = Vec::new();
        // Some runs are about crashes, some about the network, most about everything.
        let (crashes, network, disks) = match random.below(6) {
            0 => (true, false, false),
            1 => (false, true, false),
            2 => (true, false, true),
            _ => (true, true, true),
        };
        let mut at = random.between(200, 3_000);
        while at < calm_at_ms {
            let who = random.index(count);
            let until = at + random.between(100, 9_000);
            match random.below(12) {
                0 | 1 if crashes => {
                    faults.push((at, Fault::CrashAfter { who, steps: random.below(60) }));
                }
                2 if crashes => faults.push((at, Fault::Crash(who))),
                3 if crashes => faults.push((at, Fault::Exit(who))),
                4 if crashes => faults.push((at, Fault::Freeze { who, for_ms: random.between(50, 8_000) })),
                5 if disks => {
                    faults.push((at, Fault::DiskFull { who, steps: random.below(40) }));
                    faults.push((until, Fault::RoomMade(who)));
                }
                6 if disks => {
                    faults.push((at, Fault::LowSpace(who)));
                    faults.push((until, Fault::RoomMade(who)));
                }
                7 if network => {
                    faults.push((at, Fault::Partition(random.next())));
                    faults.push((until, Fault::Healed));
                }
                8 if network => {
                    let from = random.index(count);
                    faults.push((at, Fault::Cut { from, to: who }));
                    faults.push((until, Fault::Healed));
                }
                9 | 10 if network => {
                    let weather = Weather {
                        lost_percent: *random.pick(&[0, 1, 5, 20, 40]),
                        twice_percent: *random.pick(&[0, 5, 30]),
                        late_ms: *random.pick(&[5, 50, 300, 1_500]),
                    };
                    faults.push((at, Fault::Weather(weather)));
                }
                11 => {
                    let ahead_ms = random.between(0, 6_000) as i64 - 3_000;
                    faults.push((at, Fault::Clock { who, ahead_ms }));
                }
                _ => {}
            }
            at += random.between(100, 3_000);
        }
        faults.push((calm_at_ms, Fault::Calm));
        faults
    }
}
