//! The menu behind the local keyboard: keys in, actions out.
//!
//! ```text
//!  Closed ──F1, Enter──> Top ──> Link ─> Form ─> Sure(network) ──yes──> Order::Network ──┐
//!    ^                    ├────> Disk ─> Typed(serial) ──equal──> Order::Wipe ───────────┤
//!    │                    └────> Sure(restart | switch off) ──yes──> Action              v
//!    └──Esc goes one step back, from everywhere────────────────────────────────────── Told
//! ```
//! It must never yield [`Order::Wipe`] unless the serial number of that very disk (its model where it has none) was typed
//! on its page, and never restart or switch off without a second key that is not the default. There is no shell.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::frame::Style;
use crate::model::{Disk, LinkOrder, Order, Status, essence};
use crate::text::{fit, plain, wrap};

/// Longest line that can be typed: no serial number and no address is longer.
const INPUT_MAX_CHARS: usize = 64;

/// A key, as far as the menu knows keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Printable ASCII.
    Char(char),
    Enter,
    Backspace,
    Escape,
    Up,
    Down,
    F1,
}

/// From the bytes of a terminal to keys. Unknown sequences are nothing.
#[derive(Debug, Default)]
pub struct Keys;

impl Keys {
    /// The keys in what one read gave; the kernel hands out the sequence of a key whole.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'\r' | b'\n' => keys.push(Key::Enter),
                0x08 | 0x7f => keys.push(Key::Backspace),
                0x1b => rest = escape(after, &mut keys),
                b' '..=b'~' => keys.push(Key::Char(char::from(*first))),
                _ => {}
            }
        }
        keys
    }
}

/// After an escape: what is left.
fn escape<'a>(rest: &'a [u8], keys: &mut Vec<Key>) -> &'a [u8] {
    let known: [(&[u8], Key); 7] = [
        (b"[[A", Key::F1),
        (b"[11~", Key::F1),
        (b"OP", Key::F1),
        (b"[A", Key::Up),
        (b"OA", Key::Up),
        (b"[B", Key::Down),
        (b"OB", Key::Down),
    ];
    for (sequence, key) in known {
        if let Some(after) = rest.strip_prefix(sequence) {
            keys.push(key);
            return after;
        }
    }
    match rest.split_first() {
        // Another function key: parameters and a final byte; `[[B` is F2 here.
        Some((b'[', after)) => {
            let after = after.strip_prefix(b"[").unwrap_or(after);
            let end = after.iter().position(|byte| (b'@'..=b'~').contains(byte));
            end.map_or(&[][..], |end| &after[end + 1..])
        }
        Some((b'O', after)) => after.get(1..).unwrap_or_default(),
        // The key alone; what follows was typed after it.
        _ => {
            keys.push(Key::Escape);
            rest
        }
    }
}

/// What is to be done at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Restart,
    SwitchOff,
    /// For the agent, which answers.
    Order(Order),
}

/// Things that need a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Restart,
    SwitchOff,
    Network(LinkOrder),
}

/// The fields of a link's settings, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Address,
    Prefix,
    Gateway,
    Dns,
    Vlan,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Page {
    #[default]
    Closed,
    Top {
        chosen: usize,
    },
    Link {
        chosen: usize,
    },
    Form {
        order: LinkOrder,
        field: Field,
        input: String,
        wrong: String,
    },
    Disk {
        chosen: usize,
        wrong: String,
    },
    Typed {
        disk: Disk,
        input: String,
        wrong: String,
    },
    Sure {
        question: Question,
        yes: bool,
    },
    /// Waiting for an answer, or showing it.
    Told {
        text: String,
    },
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Menu {
    page: Page,
}

const TOP: [&str; 4] = ["Network settings for this boot", "Wipe a disk", "Restart", "Switch off"];

impl Menu {
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.page != Page::Closed
    }

    /// Shows the agent's answer, where somebody still waits for it.
    pub fn answer(&mut self, text: &str) {
        if let Page::Told { text: told } = &mut self.page {
            *told = plain(text);
        }
    }

    /// Takes one key. `status` is what is on the screen beside it.
    pub fn handle(&mut self, key: Key, status: &Status) -> Option<Action> {
        if key == Key::Escape {
            self.back();
            return None;
        }
        match &mut self.page {
            Page::Closed => {
                if matches!(key, Key::F1 | Key::Enter) {
                    self.page = Page::Top { chosen: 0 };
                }
                None
            }
            Page::Top { chosen } => {
                if choose(chosen, TOP.len(), key) {
                    self.page = match *chosen {
                        0 => Page::Link { chosen: 0 },
                        1 => Page::Disk { chosen: 0, wrong: String::new() },
                        2 => Page::Sure { question: Question::Restart, yes: false },
                        _ => Page::Sure { question: Question::SwitchOff, yes: false },
                    };
                }
                None
            }
            Page::Link { chosen } => {
                if choose(chosen, status.links.len(), key)
                    && let Some(link) = status.links.get(*chosen)
                {
                    let order = LinkOrder { link: link.name.clone(), ..LinkOrder::default() };
                    self.page = form(order, Field::Address);
                }
                None
            }
            Page::Form { .. } => {
                self.form(key);
                None
            }
            Page::Disk { chosen, wrong } => {
                wrong.clear();
                if choose(chosen, status.disks.len(), key)
                    && let Some(disk) = status.disks.get(*chosen)
                {
                    match may_wipe(disk) {
                        Ok(()) => {
                            self.page = Page::Typed {
                                disk: disk.clone(),
                                input: String::new(),
                                wrong: String::new(),
                            };
                        }
                        Err(why) => *wrong = format!("{}: {why}", disk.name),
                    }
                }
                None
            }
            Page::Typed { .. } => self.typed(key),
            Page::Sure { .. } => self.sure(key),
            Page::Told { .. } => {
                if matches!(key, Key::Enter | Key::F1) {
                    self.page = Page::Closed;
                }
                None
            }
        }
    }

    fn back(&mut self) {
        self.page = match &self.page {
            Page::Closed | Page::Top { .. } | Page::Told { .. } => Page::Closed,
            Page::Link { .. } => Page::Top { chosen: 0 },
            Page::Form { .. } => Page::Link { chosen: 0 },
            Page::Disk { .. } => Page::Top { chosen: 1 },
            Page::Typed { .. } => Page::Disk { chosen: 0, wrong: String::new() },
            Page::Sure { question: Question::Restart, .. } => Page::Top { chosen: 2 },
            Page::Sure { question: Question::SwitchOff, .. } => Page::Top { chosen: 3 },
            Page::Sure { question: Question::Network(order), .. } => {
                form(LinkOrder { link: order.link.clone(), ..LinkOrder::default() }, Field::Address)
            }
        };
    }

    fn form(&mut self, key: Key) {
        let Page::Form { order, field, input, wrong } = &mut self.page else { return };
        if key != Key::Enter {
            type_into(input, key);
            wrong.clear();
            return;
        }
        if let Err(why) = fill(order, *field, input) {
            *wrong = why;
            return;
        }
        let order = std::mem::take(order);
        self.page = match next(*field, &order) {
            Some(field) => form(order, field),
            None => Page::Sure { question: Question::Network(order), yes: false },
        };
    }

    fn typed(&mut self, key: Key) -> Option<Action> {
        let Page::Typed { disk, input, wrong } = &mut self.page else { return None };
        if key != Key::Enter {
            type_into(input, key);
            wrong.clear();
            return None;
        }
        let wanted = disk.confirmation().map(essence)?;
        if essence(input) != wanted {
            *wrong = "that is not what is written above: nothing was wiped".into();
            input.clear();
            return None;
        }
        let order = Order::Wipe { disk: disk.name.clone(), typed: std::mem::take(input) };
        self.page = Page::Told { text: format!("wiping {}: asked the node's agent ..", disk.name) };
        Some(Action::Order(order))
    }

    fn sure(&mut self, key: Key) -> Option<Action> {
        let Page::Sure { question, yes } = &mut self.page else { return None };
        match key {
            Key::Up | Key::Down => *yes = !*yes,
            Key::Enter if *yes => {
                let (action, text) = match question {
                    Question::Restart => (Action::Restart, "restarting .."),
                    Question::SwitchOff => (Action::SwitchOff, "switching off .."),
                    Question::Network(order) => {
                        let order = Order::Network(std::mem::take(order));
                        (Action::Order(order), "asked the node's agent ..")
                    }
                };
                self.page = Page::Told { text: text.to_owned() };
                return Some(action);
            }
            Key::Enter => self.back(),
            _ => {}
        }
        None
    }

    /// The page that takes the place of the status; `None` while the menu is closed.
    #[must_use]
    pub fn lines(&self, status: &Status, width: usize) -> Option<Vec<(Style, String)>> {
        let mut page = Lines { rows: Vec::new(), width };
        match &self.page {
            Page::Closed => return None,
            Page::Top { chosen } => {
                page.title("Menu");
                page.list(TOP.iter().map(ToString::to_string), *chosen);
                page.hint("Up, Down or a digit; Enter takes it; Esc goes back.");
            }
            Page::Link { chosen } => {
                page.title("Network settings for this boot: which card?");
                let shown = status.links.iter().map(|link| format!("{} {}", link.name, link.mac));
                page.list(shown, *chosen);
                page.hint("They hold until the machine restarts.");
            }
            Page::Form { order, field, input, wrong } => {
                page.title(&format!("Settings of {}", order.link));
                page.text(Style::Plain, &summary(order));
                page.text(Style::Plain, "");
                page.text(Style::Plain, question(*field));
                page.input(input);
                page.text(Style::Bad, wrong);
            }
            Page::Disk { chosen, wrong } => {
                page.title("Wipe a disk: which one?");
                let shown =
                    status.disks.iter().map(|disk| format!("{} {} {}", disk.name, disk.size, disk.model));
                page.list(shown, *chosen);
                page.text(Style::Bad, wrong);
            }
            Page::Typed { disk, input, wrong } => {
                page.title(&format!("Wipe {}", disk.name));
                page.text(Style::Bad, "Everything on this disk will be lost, for everybody.");
                page.text(Style::Plain, &format!("{} {} {}", disk.name, disk.size, disk.model));
                page.text(Style::Plain, &disk.verdict.text);
                page.text(Style::Plain, "");
                page.text(
                    Style::Plain,
                    "To wipe it type this, then Enter; case, dashes and spaces don't count:",
                );
                page.text(Style::Bold, disk.confirmation().unwrap_or_default());
                page.input(input);
                page.text(Style::Bad, wrong);
            }
            Page::Sure { question, yes } => {
                let text = match question {
                    Question::Restart => {
                        "Restart this machine? Its workloads stop, and start again after it.".into()
                    }
                    Question::SwitchOff => "Switch this machine off? Its workloads stop.".into(),
                    Question::Network(order) => {
                        format!("Use this until the machine restarts? {}", summary(order))
                    }
                };
                page.title("Are you sure?");
                page.text(Style::Plain, &text);
                page.list(["No".to_owned(), "Yes".to_owned()].into_iter(), usize::from(*yes));
                page.hint("Down and Enter for yes.");
            }
            Page::Told { text } => {
                page.title("Menu");
                page.text(Style::Plain, text);
                page.hint("Enter or Esc closes this.");
            }
        }
        Some(page.rows)
    }
}

fn form(order: LinkOrder, field: Field) -> Page {
    Page::Form { order, field, input: String::new(), wrong: String::new() }
}

/// Whether the disk may be chosen at all; the agent decides again.
fn may_wipe(disk: &Disk) -> Result<(), String> {
    if !disk.keep.is_empty() {
        return Err(disk.keep.clone());
    }
    match disk.confirmation() {
        Some(_) => Ok(()),
        None => Err("it tells neither serial number nor model, so it can't be told from others".into()),
    }
}

/// Moves in a list; whether something was taken. A digit takes at once.
fn choose(chosen: &mut usize, count: usize, key: Key) -> bool {
    match key {
        Key::Up => *chosen = chosen.saturating_sub(1),
        Key::Down => *chosen = (*chosen + 1).min(count.saturating_sub(1)),
        Key::Enter => return *chosen < count,
        Key::Char(digit @ '1'..='9') => {
            let wanted = digit as usize - '1' as usize;
            if wanted < count {
                *chosen = wanted;
                return true;
            }
        }
        _ => {}
    }
    false
}

fn type_into(input: &mut String, key: Key) {
    match key {
        Key::Char(character) if input.len() < INPUT_MAX_CHARS => input.push(character),
        Key::Backspace => {
            input.pop();
        }
        _ => {}
    }
}

/// Puts what was typed into its field.
fn fill(order: &mut LinkOrder, field: Field, input: &str) -> Result<(), String> {
    let input = input.trim();
    let address = |what: &str| {
        let parsed: Result<IpAddr, _> = input.parse();
        parsed.map_err(|_| format!("{input:?} is no address: type {what} such as 192.0.2.10"))
    };
    match field {
        Field::Address if input.is_empty() => order.address.clear(),
        Field::Address => order.address = address("one")?.to_string(),
        Field::Prefix => {
            let longest = if order.address.contains(':') { 128 } else { 32 };
            let parsed = input.parse::<u8>().ok().filter(|prefix| (1..=longest).contains(prefix));
            order.prefix = parsed.ok_or_else(|| format!("type a number from 1 to {longest}; 24 is usual"))?;
        }
        Field::Gateway if input.is_empty() => order.gateway.clear(),
        Field::Gateway => {
            let gateway = address("a gateway")?;
            if gateway.is_ipv6() != order.address.contains(':') {
                return Err("address and gateway must be of the same kind".into());
            }
            order.gateway = gateway.to_string();
        }
        Field::Dns if input.is_empty() => order.dns.clear(),
        Field::Dns => order.dns = address("a resolver")?.to_string(),
        Field::Vlan if input.is_empty() => order.vlan = 0,
        Field::Vlan => {
            let parsed = input.parse::<u16>().ok().filter(|vlan| (1..=4094).contains(vlan));
            order.vlan = parsed.ok_or("type a number from 1 to 4094, or nothing")?;
        }
    }
    Ok(())
}

fn next(field: Field, order: &LinkOrder) -> Option<Field> {
    match field {
        // By DHCP: the server says the rest.
        Field::Address if order.address.is_empty() => Some(Field::Vlan),
        Field::Address => Some(Field::Prefix),
        Field::Prefix => Some(Field::Gateway),
        Field::Gateway => Some(Field::Dns),
        Field::Dns => Some(Field::Vlan),
        Field::Vlan => None,
    }
}

fn question(field: Field) -> &'static str {
    match field {
        Field::Address => "Address such as 192.0.2.10; nothing for DHCP:",
        Field::Prefix => "Length of its network's prefix; 24 is usual:",
        Field::Gateway => "Gateway; nothing for none:",
        Field::Dns => "Resolver (DNS); nothing for none:",
        Field::Vlan => "VLAN from 1 to 4094; nothing for none:",
    }
}

fn summary(order: &LinkOrder) -> String {
    let mut text = if order.address.is_empty() {
        format!("{}: by DHCP", order.link)
    } else {
        format!("{}: {}/{}", order.link, order.address, order.prefix)
    };
    for (name, value) in [("gateway", &order.gateway), ("resolver", &order.dns)] {
        if !value.is_empty() {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if order.vlan != 0 {
        let _ = write!(text, ", VLAN {}", order.vlan);
    }
    text
}

/// A page in the making.
struct Lines {
    rows: Vec<(Style, String)>,
    width: usize,
}

impl Lines {
    fn title(&mut self, text: &str) {
        self.text(Style::Bold, text);
        self.rows.push((Style::Plain, String::new()));
    }

    fn text(&mut self, style: Style, text: &str) {
        let lines = wrap(text, self.width.saturating_sub(1).max(1), 0);
        self.rows.extend(lines.into_iter().map(|line| (style, format!(" {line}"))));
    }

    fn hint(&mut self, text: &str) {
        self.rows.push((Style::Plain, String::new()));
        self.text(Style::Dim, text);
    }

    fn list(&mut self, entries: impl Iterator<Item = String>, chosen: usize) {
        let before = self.rows.len();
        for (number, entry) in entries.enumerate() {
            let style = if number == chosen { Style::Reverse } else { Style::Plain };
            let line = fit(&format!(" {} {entry} ", number + 1), self.width);
            self.rows.push((style, line));
        }
        if self.rows.len() == before {
            self.text(Style::Warning, "there is none, or the node's agent does not run yet");
        }
    }

    /// The end of a long line is what one sees while typing.
    fn input(&mut self, input: &str) {
        let room = self.width.saturating_sub(4).max(1);
        let skipped = input.chars().count().saturating_sub(room);
        let shown: String = input.chars().skip(skipped).collect();
        self.rows.push((Style::Reverse, format!(" > {shown}_")));
    }
}

#[cfg(test)]
mod tests;
