//! Rust source with its comments and literals blanked out, so that a search finds code only.
//!
//! A lexer for exactly that; it must keep every line break, so that lines keep their numbers.

/// Code as it was; everything inside comments, strings and character literals as spaces.
pub(super) fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest, 1),
            'r' | 'b' | 'c' if !ends_in_identifier(&out) => literal_with_prefix(rest).unwrap_or(0),
            '\'' => character(rest).unwrap_or(0),
            _ => 0,
        };
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|one| if one == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

fn ends_in_identifier(text: &str) -> bool {
    text.ends_with(|last: char| last.is_alphanumeric() || last == '_')
}

/// Length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of a string whose content starts at `at`, with its closing quote.
fn string(text: &str, mut at: usize) -> usize {
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Length of `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `b'…'`, if the text starts with one.
fn literal_with_prefix(text: &str) -> Option<usize> {
    let prefix = text.len() - text.trim_start_matches(['r', 'b', 'c']).len();
    let after = &text[prefix..];
    if prefix > 2 {
        return None;
    }
    if after.starts_with('"') && !text[..prefix].contains('r') {
        return Some(string(text, prefix + 1));
    }
    if after.starts_with('\'') && &text[..prefix] == "b" {
        return character(after).map(|length| length + prefix);
    }
    let hashes = after.len() - after.trim_start_matches('#').len();
    if !text[..prefix].contains('r') || !after[hashes..].starts_with('"') {
        return None;
    }
    let start = prefix + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()))
}

/// Length of a character literal; nothing if it is a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        // The escaped character itself may be a quote.
        let (at, _) =
            chars.nth(1).filter(|(_, second)| *second != '\'').or_else(|| text.char_indices().nth(3))?;
        return text[at..].find('\'').map(|quote| at + quote + 1);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::code_only;

    fn kept(source: &str) -> String {
        code_only(source).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_vanish_and_code_stays() {
        let cases = [
            ("a // unsafe {\nb", "a b"),
            ("a /* x /* unsafe */ y */ b", "a b"),
            ("f(\"unsafe \\\" {\", 1)", "f( , 1)"),
            ("f(r#\"unsafe \" {\"#, b\"unsafe\", br\"x\\\", c\"y\")", "f( , , , )"),
            ("let c = '\"'; unsafe { g('\\'', '\\u{1F600}', b'\\\\') }", "let c = ; unsafe { g( , , ) }"),
            ("fn f<'a>(x: &'a str) -> &'a str { x }", "fn f<'a>(x: &'a str) -> &'a str { x }"),
            ("number(r, b, c)", "number(r, b, c)"),
            ("let r#type = 1;", "let r#type = 1;"),
        ];
        for (source, expected) in cases {
            assert_eq!(kept(source), expected, "{source}");
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let source = "a\n/* x\n y */\n\"s\n t\"\nb";
        assert_eq!(code_only(source).lines().count(), source.lines().count());
        assert_eq!(code_only(source).lines().nth(5), Some("b"));
    }
}
