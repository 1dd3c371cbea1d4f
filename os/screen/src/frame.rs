//! Cells of a text console, and the bytes that bring a terminal from one frame to the next.
//!
//! The terminal is Linux's own (console_codes(4)), so a handful of sequences is all there is, and no terminal database is
//! needed. It must never write outside of the frame, and never let a cell hold what is not a glyph: [`Frame::put`] takes
//! printable ASCII and the few glyphs of `GLYPHS`.

use std::fmt::Write as _;

/// Glyphs beside ASCII with their places in code page 437, which every console font of the kernel follows. They are sent
/// as such bytes: a kernel without CONSOLE_TRANSLATIONS draws nothing for what it is told in UTF-8.
const GLYPHS: [(char, u8); 4] =
    [('\u{2500}', 0xc4), ('\u{2580}', 0xdf), ('\u{2584}', 0xdc), ('\u{2588}', 0xdb)];
/// A console of more cells is drawn in part: 4K with an 8x16 font has 480 columns and 135 rows.
const COLUMNS_MAX: usize = 512;
const ROWS_MAX: usize = 256;

/// Of a console, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

impl Size {
    /// Within what is drawn at most.
    #[must_use]
    pub fn new(columns: usize, rows: usize) -> Self {
        Self { columns: columns.min(COLUMNS_MAX), rows: rows.min(ROWS_MAX) }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Bold,
    Good,
    Warning,
    Bad,
    Dim,
    /// Of the title, and of what is chosen.
    Reverse,
    /// White on black at full contrast, for cameras.
    Code,
}

impl Style {
    /// Select Graphic Rendition.
    fn sequence(self) -> &'static str {
        match self {
            Self::Plain => "\x1b[0m",
            Self::Bold => "\x1b[0;1m",
            Self::Good => "\x1b[0;32m",
            Self::Warning => "\x1b[0;1;33m",
            Self::Bad => "\x1b[0;1;31m",
            Self::Dim => "\x1b[0;36m",
            Self::Reverse => "\x1b[0;7m",
            Self::Code => "\x1b[0;1;37;40m",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub glyph: char,
    pub style: Style,
}

const BLANK: Cell = Cell { glyph: ' ', style: Style::Plain };

/// A whole picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    size: Size,
    cells: Vec<Cell>,
}

impl Frame {
    #[must_use]
    pub fn new(size: Size) -> Self {
        let size = Size::new(size.columns, size.rows);
        Self { size, cells: vec![BLANK; size.columns * size.rows] }
    }

    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Writes text at a place; what is outside of the frame is dropped, what is no glyph becomes a question mark.
    pub fn put(&mut self, row: usize, column: usize, style: Style, text: &str) {
        for (offset, character) in text.chars().enumerate() {
            let column = column.saturating_add(offset);
            if row >= self.size.rows || column >= self.size.columns {
                return;
            }
            let known = character == ' '
                || character.is_ascii_graphic()
                || GLYPHS.iter().any(|(glyph, _)| *glyph == character);
            let glyph = if known { character } else { '?' };
            self.cells[row * self.size.columns + column] = Cell { glyph, style };
        }
    }

    /// Fills a row's cells with blanks of a style.
    pub fn fill(&mut self, row: usize, style: Style) {
        self.put(row, 0, style, &" ".repeat(self.size.columns));
    }

    fn row(&self, row: usize) -> &[Cell] {
        &self.cells[row * self.size.columns..][..self.size.columns]
    }

    /// The glyphs alone, one line for each row, without blanks at the end.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in 0..self.size.rows {
            let line: String = self.row(row).iter().map(|cell| cell.glyph).collect();
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    #[must_use]
    pub fn style_at(&self, row: usize, column: usize) -> Option<Style> {
        (row < self.size.rows && column < self.size.columns).then(|| self.row(row)[column].style)
    }
}

/// Remembers what the terminal shows.
#[derive(Debug, Default)]
pub struct Painter {
    shown: Option<Frame>,
}

impl Painter {
    /// Bytes that make the terminal show `frame`; nothing where it does already.
    #[must_use]
    pub fn paint(&mut self, frame: Frame) -> Vec<u8> {
        let known = self.shown.as_ref().filter(|shown| shown.size == frame.size);
        let mut out = String::new();
        if known.is_none() {
            // Bytes straight to the font, no cursor, no automatic margins (the last cell would scroll), a blank page.
            out.push_str("\x1b%@\x1b(U\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J");
        }
        for row in 0..frame.size.rows {
            let old = known.map(|shown| shown.row(row));
            changed(&mut out, row, old, frame.row(row));
        }
        if !out.is_empty() {
            out.push_str("\x1b[0m");
        }
        self.shown = Some(frame);
        out.chars().map(byte).collect()
    }

    /// The next frame is drawn whole: somebody else may have written to the terminal.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// Bytes that leave the terminal to others: a cursor, margins, plain text on a blank page.
    #[must_use]
    pub fn farewell() -> &'static [u8] {
        b"\x1b(B\x1b%G\x1b[0m\x1b[?7h\x1b[?25h\x1b[2J\x1b[H"
    }
}

/// As the console's font counts.
fn byte(character: char) -> u8 {
    let known = GLYPHS.iter().find(|(glyph, _)| *glyph == character).map(|(_, byte)| *byte);
    known.or(u8::try_from(character).ok().filter(u8::is_ascii)).unwrap_or(b'?')
}

/// The cells of one row that differ, each run with one jump.
fn changed(out: &mut String, row: usize, old: Option<&[Cell]>, new: &[Cell]) {
    let mut style = None;
    let mut next = None;
    for (column, cell) in new.iter().enumerate() {
        if *cell == old.map_or(BLANK, |old| old[column]) {
            continue;
        }
        if next != Some(column) {
            let _ = write!(out, "\x1b[{};{}H", row + 1, column + 1);
        }
        if style != Some(cell.style) {
            out.push_str(cell.style.sequence());
            style = Some(cell.style);
        }
        out.push(cell.glyph);
        next = Some(column + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Size = Size { columns: 10, rows: 3 };

    /// A terminal that knows what the painter uses, and nothing else.
    struct Terminal {
        frame: Frame,
        row: usize,
        column: usize,
        style: Style,
    }

    impl Terminal {
        fn new() -> Self {
            Self { frame: Frame::new(SIZE), row: 0, column: 0, style: Style::Plain }
        }

        fn take(&mut self, bytes: &[u8]) {
            let styles = [
                Style::Plain,
                Style::Bold,
                Style::Good,
                Style::Warning,
                Style::Bad,
                Style::Dim,
                Style::Reverse,
                Style::Code,
            ];
            let glyph = |byte: &u8| {
                let known = GLYPHS.iter().find(|(_, place)| place == byte).map(|(glyph, _)| *glyph);
                known.unwrap_or(char::from(*byte))
            };
            let text: String = bytes.iter().map(glyph).collect();
            let mut rest = text.as_str();
            while let Some(first) = rest.chars().next() {
                if first != '\x1b' {
                    self.frame.put(self.row, self.column, self.style, &first.to_string());
                    self.column += 1;
                    rest = &rest[first.len_utf8()..];
                    continue;
                }
                let end = rest[1..].find(|c: char| c.is_ascii_alphabetic() || c == '@').unwrap() + 2;
                let (sequence, after) = rest.split_at(end);
                rest = after;
                match sequence {
                    "\x1b%@" | "\x1b(U" | "\x1b[?25l" | "\x1b[?7l" => {}
                    "\x1b[2J" => self.frame = Frame::new(SIZE),
                    _ if sequence.ends_with('m') => {
                        self.style = *styles.iter().find(|style| style.sequence() == sequence).unwrap();
                    }
                    _ => {
                        let place = sequence.strip_prefix("\x1b[").unwrap().strip_suffix('H').unwrap();
                        let (row, column) = place.split_once(';').unwrap();
                        self.row = row.parse::<usize>().unwrap() - 1;
                        self.column = column.parse::<usize>().unwrap() - 1;
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_outside_of_the_frame_and_nothing_but_glyphs() {
        let mut frame = Frame::new(SIZE);
        frame.put(0, 8, Style::Bold, "abcdef");
        frame.put(9, 0, Style::Plain, "x");
        frame.put(1, usize::MAX, Style::Plain, "xy");
        frame.put(2, 0, Style::Plain, "a\x1b[2J\u{e9}\u{2588}");
        assert_eq!(frame.text(), "        ab\n\na?[2J?\u{2588}\n");
        assert_eq!(frame.style_at(0, 9), Some(Style::Bold));
        assert_eq!(frame.style_at(3, 0), None);
    }

    #[test]
    fn the_same_frame_costs_nothing_and_a_changed_cell_little() {
        let mut painter = Painter::default();
        let mut frame = Frame::new(SIZE);
        frame.put(0, 0, Style::Plain, "height 10");
        assert!(painter.paint(frame.clone()).starts_with(b"\x1b%@"));
        assert!(painter.paint(frame.clone()).is_empty());
        frame.put(0, 8, Style::Plain, "1");
        assert_eq!(painter.paint(frame.clone()), b"\x1b[1;9H\x1b[0m1\x1b[0m");
        painter.forget();
        assert!(painter.paint(frame).len() > 20);
    }

    #[test]
    fn a_giant_console_is_bounded() {
        let size = Frame::new(Size { columns: usize::MAX, rows: usize::MAX }).size();
        assert_eq!((size.columns, size.rows), (COLUMNS_MAX, ROWS_MAX));
    }

    proptest! {
        #[test]
        fn the_terminal_shows_each_frame(
            frames in prop::collection::vec(
                prop::collection::vec((0_usize..4, 0_usize..12, 0_usize..8, "[ a-c\u{2588}\u{e9}]{0,6}"), 0..8), 1..6),
            forget in any::<u8>(),
        ) {
            let (mut painter, mut terminal) = (Painter::default(), Terminal::new());
            let styles = [Style::Plain, Style::Bold, Style::Good, Style::Warning, Style::Bad, Style::Dim,
                Style::Reverse, Style::Code];
            for (number, writes) in frames.into_iter().enumerate() {
                let mut frame = Frame::new(SIZE);
                for (row, column, style, text) in writes {
                    frame.put(row, column, styles[style], &text);
                }
                if forget >> (number % 8) & 1 == 1 {
                    painter.forget();
                }
                let bytes = painter.paint(frame.clone());
                terminal.take(&bytes);
                prop_assert_eq!(&terminal.frame, &frame);
            }
        }
    }
}
