//! Links between simulated machines: each direction of its own, up or down, near or far.

use super::plan::{FINE, Weather};
use super::random::Random;

#[derive(Debug, Clone)]
struct Link {
    /// Both ends know of it.
    up: bool,
    /// Nothing gets through, whether the ends know or not.
    cut: bool,
    /// Counts how often it came up: what was on its way before is lost.
    made: u64,
    distance_ms: u64,
}

pub(crate) struct Network {
    count: usize,
    links: Vec<Link>,
    weather: Weather,
    random: Random,
}

impl Network {
    pub(crate) fn new(count: usize, mut random: Random) -> Self {
        let far = random.percent(25);
        let mut link = || {
            let distance_ms = if far { random.between(20, 150) } else { random.between(1, 15) };
            Link { up: false, cut: false, made: 0, distance_ms }
        };
        let links = (0..count * count).map(|_| link()).collect();
        Self { count, links, weather: FINE, random }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.count + to]
    }

    pub(crate) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Cuts every link between those in the set and the others.
    pub(crate) fn part(&mut self, set: u64) {
        let side = |who: usize| set >> who & 1;
        for from in 0..self.count {
            for to in 0..self.count {
                if side(from) != side(to) {
                    self.link(from, to).cut = true;
                }
            }
        }
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.link(from, to).cut = true;
    }

    pub(crate) fn heal(&mut self) {
        for link in &mut self.links {
            link.cut = false;
        }
    }

    pub(crate) fn is_cut(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).cut
    }

    pub(crate) fn is_up(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).up
    }

    pub(crate) fn set_up(&mut self, from: usize, to: usize, up: bool) {
        let link = self.link(from, to);
        link.made += u64::from(up && !link.up);
        link.up = up;
    }

    /// Whether what was sent on the link as it was made then still arrives.
    pub(crate) fn carries(&mut self, from: usize, to: usize, made: u64) -> bool {
        let link = self.link(from, to);
        link.up && !link.cut && link.made == made
    }

    /// When copies of a message arrive, after so many milliseconds; none of a lost one. Also how often the link
    /// was made.
    pub(crate) fn send(&mut self, from: usize, to: usize, bulk: bool) -> (Vec<u64>, u64) {
        let Link { up, cut, made, distance_ms } = *self.link(from, to);
        let Weather { lost_percent, twice_percent, late_ms } = self.weather;
        if !up || cut || self.random.percent(lost_percent) {
            return (Vec::new(), made);
        }
        let copies = 1 + u64::from(self.random.percent(twice_percent));
        let slow = if bulk { 3 } else { 1 };
        let after = (0..copies).map(|_| slow * (distance_ms + self.random.between(0, late_ms)));
        (after.collect(), made)
    }
}
