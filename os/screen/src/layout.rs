//! From what is known to a frame of a given size.
//!
//! ```text
//! +-------------------------------------------------+
//! | Croft 0.1.0   node n1 of farm alpha     F1 menu |
//! | Boot                          |  ▄▄▄▄▄▄▄ ▄ ▄▄▄  |
//! |   5 network  no carrier..     |  █ ▄▄▄ █ ▀█▄▀█  |
//! | Network, Disks, Ledger,       |                 |
//! | Workloads                     |  1b2f 77aa ..   |
//! +-------------------------------------------------+
//! ```
//! A menu takes the place of the sections. Where there is no room for the code, the lines take all of it. Sections that
//! don't fit are cut fairly, and say how much is missing.

use std::fmt::Write as _;

use crate::frame::{Frame, Size, Style};
use crate::menu::Menu;
use crate::model::{Status, Tone};
use crate::qr;
use crate::stages::{Stages, State};
use crate::text::{fit, wrap};

/// Beside the code, lines need this many columns to make sense.
const TEXT_COLUMNS_MIN: usize = 34;
/// Rows of the longest reason of one stage.
const REASON_ROWS_MAX: usize = 5;

/// All that decides a frame.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub status: &'a Status,
    pub stages: &'a Stages,
    pub menu: &'a Menu,
    /// Whether the agent is connected.
    pub agent: bool,
}

/// A line with its style.
type Row = (Style, String);

struct Section {
    title: &'static str,
    rows: Vec<Row>,
}

/// Draws.
#[must_use]
pub fn render(view: View<'_>, size: Size) -> Frame {
    let mut frame = Frame::new(size);
    let Size { columns, rows } = frame.size();
    if columns == 0 || rows == 0 {
        return frame;
    }
    title(&mut frame, view);
    let code = qr::rows(&view.status.id)
        .filter(|code| columns >= code[0].chars().count() + 1 + TEXT_COLUMNS_MIN && rows >= code.len() + 3);
    let code_columns = code.as_ref().map_or(0, |code| code[0].chars().count());
    if let Some(code) = &code {
        let left = columns - code_columns;
        for (row, line) in code.iter().enumerate() {
            frame.put(1 + row, left, Style::Code, line);
        }
        // The whole id, for whoever has no camera.
        for (row, part) in quarters(&view.status.id, code_columns).into_iter().enumerate() {
            frame.put(1 + code.len() + row, left, Style::Dim, &part);
        }
    }
    let width = columns - if code_columns == 0 { 0 } else { code_columns + 1 };
    let height = rows - 1;
    let lines = match view.menu.lines(view.status, width) {
        Some(lines) => lines,
        None => stack(sections(view, width), height),
    };
    for (row, (style, line)) in lines.into_iter().take(height).enumerate() {
        frame.put(1 + row, 0, style, &fit(&line, width));
    }
    frame
}

fn title(frame: &mut Frame, view: View<'_>) {
    let Size { columns, .. } = frame.size();
    let status = view.status;
    let mut text = format!(" Croft {}", status.version);
    if !status.name.is_empty() {
        let _ = write!(text, "  node {}", status.name);
    }
    if !status.farm.is_empty() {
        let _ = write!(text, " of farm {}", status.farm);
    }
    if !status.fingerprint.is_empty() {
        let _ = write!(text, "  key {}", status.fingerprint);
    }
    if !status.trust.is_empty() {
        let _ = write!(text, "  {}", status.trust);
    }
    let hint = if view.menu.is_open() { "Esc back " } else { "F1 menu " };
    frame.fill(0, Style::Reverse);
    frame.put(0, 0, Style::Reverse, &fit(&text, columns.saturating_sub(hint.len() + 1)));
    if columns > 2 * hint.len() {
        frame.put(0, columns - hint.len(), Style::Reverse, hint);
    }
}

/// The id in groups of four digits, in lines of whole groups.
fn quarters(id: &str, width: usize) -> Vec<String> {
    let groups: Vec<String> =
        id.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    let in_line = ((width + 1) / 5).max(1);
    // Eight groups look better than seven and two.
    let in_line = if in_line >= 8 { 8 } else { in_line.min(4) };
    groups.chunks(in_line).map(|line| line.join(" ")).collect()
}

fn sections(view: View<'_>, width: usize) -> Vec<Section> {
    let mut all = vec![boot(view.stages, width)];
    let troubles = view.stages.troubles();
    if !view.agent && (!troubles.is_empty() || view.stages.list.iter().any(|stage| stage.number > 4)) {
        all[0].rows.push((Style::Warning, "  the node's agent does not run now".into()));
    }
    let mut rows = Vec::new();
    for trouble in troubles {
        indented(&mut rows, style(trouble.tone), &trouble.text, width, REASON_ROWS_MAX);
    }
    all.push(Section { title: "Trouble", rows });
    all.push(network(view.status, width));
    all.push(disks(view.status, width));
    all.push(ledger(view.status, width));
    all.push(workloads(view, width));
    all.retain(|section| !section.rows.is_empty());
    all
}

fn boot(stages: &Stages, width: usize) -> Section {
    let mut rows = Vec::new();
    let mut well = Vec::new();
    for stage in &stages.list {
        let (style, what) = match stage.state {
            State::Ok => {
                well.push(stage.name.as_str());
                continue;
            }
            State::Started => (Style::Plain, "running"),
            State::Waiting => (Style::Warning, "waiting"),
            State::Failed => (Style::Bad, "failed"),
        };
        let separator = if stage.detail.is_empty() { "" } else { ": " };
        let text =
            format!("{}/{} {} {what}{separator}{}", stage.number, stages.total, stage.name, stage.detail);
        indented(&mut rows, style, &text, width, REASON_ROWS_MAX);
    }
    if stages.all_ok() {
        rows.push((Style::Good, format!("  all {} stages done", stages.total)));
    } else if !well.is_empty() {
        let done = format!("{} of {} done: {}", well.len(), stages.total, well.join(" "));
        let mut first = Vec::new();
        indented(&mut first, Style::Good, &done, width, 3);
        rows.splice(0..0, first);
    }
    Section { title: "Boot", rows }
}

fn network(status: &Status, width: usize) -> Section {
    let mut rows = Vec::new();
    for link in &status.links {
        let text = format!("{} {} {}", link.name, link.mac, link.addresses.join(" "));
        indented(&mut rows, Style::Plain, &text, width, 3);
        // What is well is said by the address.
        if link.state.tone != Tone::Good || link.addresses.is_empty() {
            deeper(&mut rows, style(link.state.tone), &link.state.text, width);
        }
    }
    Section { title: "Network", rows }
}

fn disks(status: &Status, width: usize) -> Section {
    let mut rows = Vec::new();
    for disk in &status.disks {
        let text = format!("{} {} {}", disk.name, disk.size, disk.model);
        indented(&mut rows, Style::Plain, &text, width, 2);
        deeper(&mut rows, style(disk.verdict.tone), &disk.verdict.text, width);
        if !disk.health.text.is_empty() {
            deeper(&mut rows, style(disk.health.tone), &disk.health.text, width);
        }
    }
    Section { title: "Disks", rows }
}

fn ledger(status: &Status, width: usize) -> Section {
    let mut rows = Vec::new();
    for line in [&status.ledger, &status.registration] {
        if !line.text.is_empty() {
            indented(&mut rows, style(line.tone), &line.text, width, 3);
        }
    }
    Section { title: "Ledger", rows }
}

fn workloads(view: View<'_>, width: usize) -> Section {
    let mut rows = Vec::new();
    for workload in &view.status.workloads {
        let text = format!("{}: {}", workload.name, workload.state.text);
        indented(&mut rows, style(workload.state.tone), &text, width, 2);
    }
    if rows.is_empty() && view.stages.all_ok() {
        rows.push((Style::Plain, "  none".into()));
    }
    Section { title: "Workloads", rows }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Good => Style::Good,
        Tone::Plain => Style::Plain,
        Tone::Warning => Style::Warning,
        Tone::Bad => Style::Bad,
    }
}

/// Wrapped below a title, in at most `rows_max` rows.
fn indented(rows: &mut Vec<Row>, style: Style, text: &str, width: usize, rows_max: usize) {
    push(rows, style, text, width, 2, rows_max);
}

/// Wrapped below an entry.
fn deeper(rows: &mut Vec<Row>, style: Style, text: &str, width: usize) {
    push(rows, style, text, width, 4, REASON_ROWS_MAX);
}

fn push(rows: &mut Vec<Row>, style: Style, text: &str, width: usize, indent: usize, rows_max: usize) {
    let room = width.saturating_sub(indent).max(1);
    let lines = wrap(text, room, if indent > 2 { 0 } else { 2 });
    let cut = lines.len() > rows_max;
    for (number, line) in lines.into_iter().take(rows_max).enumerate() {
        let line = if cut && number + 1 == rows_max { fit(&format!("{line} .."), room) } else { line };
        rows.push((style, format!("{:indent$}{line}", "")));
    }
}

/// One below the other in `height` rows. While there are too many, the longest section gives up its last row.
fn stack(mut sections: Vec<Section>, height: usize) -> Vec<Row> {
    let mut hidden = vec![0_usize; sections.len()];
    let cost = |section: &Section, hidden: usize| 1 + section.rows.len() + usize::from(hidden > 0);
    loop {
        let total: usize = sections.iter().zip(&hidden).map(|(section, hidden)| cost(section, *hidden)).sum();
        if total <= height {
            break;
        }
        let longest = (0..sections.len()).rev().max_by_key(|index| sections[*index].rows.len());
        match longest.filter(|index| sections[*index].rows.len() > 1) {
            Some(index) => {
                sections[index].rows.pop();
                hidden[index] += 1;
            }
            // Nothing left to cut: the caller drops what is below the last row.
            None => break,
        }
    }
    let used: usize = sections.iter().zip(&hidden).map(|(section, hidden)| cost(section, *hidden)).sum();
    // Air between the sections where there is room for it.
    let airy = used + sections.len() <= height;
    let mut rows = Vec::new();
    for (section, hidden) in sections.into_iter().zip(hidden) {
        if airy && !rows.is_empty() {
            rows.push((Style::Plain, String::new()));
        }
        rows.push((Style::Bold, format!(" {}", section.title)));
        rows.extend(section.rows);
        if hidden > 0 {
            rows.push((Style::Dim, format!("  .. {hidden} more")));
        }
    }
    rows
}

#[cfg(test)]
mod tests;
