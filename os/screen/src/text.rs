//! Text from outside, made harmless: disk labels, names of workloads, answers of servers.
//!
//! What comes out is printable ASCII only: a text console has 256 glyphs, and a width of one cell for each character is
//! what the layout counts with. It must never let a control character or a part of an escape sequence through.

/// Longest text that is shown of anything; longer ones are cut.
pub const TEXT_MAX_CHARS: usize = 240;

/// Printable ASCII in one line, at most [`TEXT_MAX_CHARS`]. Escape sequences (ECMA-48) and control characters vanish,
/// white space becomes single spaces, other characters a question mark.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if out.len() >= TEXT_MAX_CHARS {
            break;
        }
        match character {
            '\u{1b}' => skip_escape(&mut characters),
            '\u{9b}' => skip_control_sequence(&mut characters),
            // Operating system command and its like, as single characters.
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut characters),
            c if c.is_whitespace() => {
                if !out.is_empty() && !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c if c.is_control() => {}
            c if c.is_ascii_graphic() => out.push(c),
            '\u{2013}' | '\u{2014}' | '\u{2212}' => out.push('-'),
            '\u{2018}' | '\u{2019}' => out.push('\''),
            _ => out.push('?'),
        }
    }
    while out.ends_with(' ') {
        out.pop();
    }
    out
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn skip_escape(characters: &mut Characters<'_>) {
    match characters.peek() {
        Some('[') => {
            characters.next();
            skip_control_sequence(characters);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            characters.next();
            skip_string(characters);
        }
        // Intermediate bytes and one final byte: `ESC ( B`.
        Some(' '..='/') => {
            while characters.next_if(|c| matches!(c, ' '..='/')).is_some() {}
            characters.next_if(|c| matches!(c, '0'..='~'));
        }
        Some('0'..='~') => {
            characters.next();
        }
        _ => {}
    }
}

/// Parameters, intermediates, one final byte. What does not fit ends it.
fn skip_control_sequence(characters: &mut Characters<'_>) {
    while characters.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    characters.next_if(|c| matches!(c, '@'..='~'));
}

/// Up to BEL or the string terminator; to the end where there is none.
fn skip_string(characters: &mut Characters<'_>) {
    while let Some(character) = characters.next() {
        match character {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                characters.next_if(|c| *c == '\\');
                return;
            }
            _ => {}
        }
    }
}

/// At most `width` characters; a cut is marked by two dots. For text that went through [`plain`].
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(2)).collect();
    cut.push_str(&".."[..width.min(2)]);
    cut
}

/// Lines of at most `width` characters, broken at spaces where possible; later lines are indented by `indent`.
#[must_use]
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let width = width.max(1);
    let indent = if indent * 2 < width { indent } else { 0 };
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        let room = |line: &String| width.saturating_sub(line.chars().count());
        let begun = line.trim_start() != "";
        if begun && room(&line) > word.len() {
            line.push(' ');
        } else if begun {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        }
        // A word that is longer than a line is broken.
        while word.len() > room(&line) {
            let rest = word.split_off(room(&line).max(1));
            line.extend(word);
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            word = rest;
        }
        line.extend(word);
    }
    if line.trim_start() != "" || lines.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escape_sequences_vanish_whole() {
        for (text, want) in [
            ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
            ("title\x1b]0;owned\x07!", "title!"),
            ("a\x1b]8;;x\x1b\\b", "ab"),
            ("\u{9b}31mx", "x"),
            ("a\x1b(Bb", "ab"),
            ("a\x1b", "a"),
            ("a\x1b[", "a"),
            ("a\x1bcb", "ab"),
            ("\x1b%Gx", "x"),
        ] {
            assert_eq!(plain(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_name_of_any_length_and_any_alphabet_becomes_one_short_line() {
        assert_eq!(plain("  two\n\t lines\r\n "), "two lines");
        assert_eq!(plain("caf\u{e9} \u{6f22}"), "caf? ?");
        assert_eq!(plain("it\u{2019}s \u{2013} fine"), "it's - fine");
        assert_eq!(plain(&"x".repeat(10_000)).len(), TEXT_MAX_CHARS);
        assert_eq!(plain("\u{202e}\u{0}\u{7f}"), "?");
    }

    #[test]
    fn a_cut_is_marked() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdefg", 6), "abcd..");
        assert_eq!(fit("abc", 1), ".");
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn lines_break_at_spaces_and_long_words_anywhere() {
        assert_eq!(
            wrap("no carrier on eth0: check the cable", 16, 2),
            ["no carrier on", "  eth0: check", "  the cable"]
        );
        assert_eq!(wrap("abcdefghij kl", 4, 0), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("", 10, 2), [""]);
    }

    proptest! {
        #[test]
        fn nothing_but_printable_ascii_ever_comes_out(text in any::<String>()) {
            let out = plain(&text);
            prop_assert!(out.len() <= TEXT_MAX_CHARS);
            prop_assert!(out.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{out:?}");
        }

        #[test]
        fn no_line_is_wider_than_asked(text in "[ a-z]{0,200}", width in 1_usize..60, indent in 0_usize..8) {
            let lines = wrap(&text, width, indent);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
            let letters = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
