use super::*;
use crate::model::{Line, Link, Tone};
use proptest::prelude::*;

fn disk(name: &str, serial: &str, model: &str, keep: &str) -> Disk {
    Disk {
        name: name.into(),
        serial: serial.into(),
        model: model.into(),
        keep: keep.into(),
        verdict: Line::new(Tone::Plain, "empty"),
        ..Disk::default()
    }
}

fn status() -> Status {
    let link = |name: &str| Link { name: name.into(), ..Link::default() };
    Status {
        links: vec![link("eth0"), link("eth1")],
        disks: vec![
            disk("vda", "AB-1", "", ""),
            disk("vdb", "", "BA", ""),
            disk("sda", "A1", "", "the machine started from it"),
            disk("sdb", "", "", ""),
        ],
        ..Status::default()
    }
}

/// Presses keys: `^` is F1, `<` backspace, `!` escape, `v` down, `/` up, newline enter, the rest itself.
fn keys(script: &str) -> Vec<Key> {
    let key = |character| match character {
        '^' => Key::F1,
        '<' => Key::Backspace,
        '!' => Key::Escape,
        'v' => Key::Down,
        '/' => Key::Up,
        '\n' => Key::Enter,
        other => Key::Char(other),
    };
    script.chars().map(key).collect()
}

fn press(menu: &mut Menu, script: &str) -> Vec<Action> {
    keys(script).into_iter().filter_map(|key| menu.handle(key, &status())).collect()
}

fn shown(menu: &Menu) -> String {
    let lines = menu.lines(&status(), 100).unwrap_or_default();
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

#[test]
fn a_restart_needs_a_second_key_that_is_not_the_default() {
    let mut menu = Menu::default();
    assert_eq!(press(&mut menu, "^3\n"), [], "Enter alone says no");
    assert!(shown(&menu).contains("3 Restart"), "{}", shown(&menu));
    assert_eq!(press(&mut menu, "\nv\n"), [Action::Restart]);
    assert_eq!(press(&mut Menu::default(), "\n4v\n"), [Action::SwitchOff], "Enter opens the menu too");
    assert_eq!(press(&mut Menu::default(), "34\n\n\nyes"), [], "while the menu is closed letters do nothing");
}

#[test]
fn a_disk_is_wiped_when_its_serial_number_was_typed() {
    let wipe =
        |disk: &str, typed: &str| Action::Order(Order::Wipe { disk: disk.into(), typed: typed.into() });
    assert_eq!(press(&mut Menu::default(), "^21ab1\n"), [wipe("vda", "ab1")], "case and dashes don't count");
    assert_eq!(
        press(&mut Menu::default(), "^22ba\n"),
        [wipe("vdb", "ba")],
        "the model where there is no serial number"
    );
    let mut menu = Menu::default();
    assert_eq!(press(&mut menu, "^21ab2\n"), []);
    assert!(shown(&menu).contains("nothing was wiped"), "{}", shown(&menu));
    assert_eq!(press(&mut menu, "ab2<1\n"), [wipe("vda", "ab1")], "after a mistake the line is empty again");
}

#[test]
fn a_disk_that_must_stay_can_not_be_chosen_and_says_why() {
    let mut menu = Menu::default();
    assert_eq!(press(&mut menu, "^23a1\n"), []);
    let mut menu = Menu::default();
    press(&mut menu, "^23");
    assert!(shown(&menu).contains("sda: the machine started from it"), "{}", shown(&menu));
    press(&mut menu, "4");
    assert!(shown(&menu).contains("neither serial number nor model"), "{}", shown(&menu));
}

#[test]
fn network_settings_are_asked_field_by_field_and_shown_before_they_are_used() {
    let mut menu = Menu::default();
    press(&mut menu, "^12192.0.2.10\n24\n192.0.2.1\n\n7\n");
    assert!(shown(&menu).contains("eth1: 192.0.2.10/24, gateway 192.0.2.1, VLAN 7"), "{}", shown(&menu));
    let order = LinkOrder {
        link: "eth1".into(),
        address: "192.0.2.10".into(),
        prefix: 24,
        gateway: "192.0.2.1".into(),
        dns: String::new(),
        vlan: 7,
    };
    assert_eq!(press(&mut menu, "v\n"), [Action::Order(Order::Network(order))]);
    menu.answer("eth1 has 192.0.2.10/24");
    assert!(shown(&menu).contains("eth1 has 192.0.2.10/24"));
    press(&mut menu, "\n");
    assert!(!menu.is_open());
    menu.answer("too late");
    assert!(!menu.is_open(), "an answer opens nothing");
}

#[test]
fn nothing_typed_means_dhcp() {
    let order = LinkOrder { link: "eth0".into(), ..LinkOrder::default() };
    assert_eq!(press(&mut Menu::default(), "^11\n\nv\n"), [Action::Order(Order::Network(order))]);
}

#[test]
fn a_wrong_field_says_what_is_wanted_and_stays() {
    for (script, want) in [
        ("^11999.0.0.1\n", "\"999.0.0.1\" is no address"),
        ("^11192.0.2.1\n40\n", "type a number from 1 to 32"),
        ("^11192.0.2.1\n24\n::1\n", "must be of the same kind"),
        ("^11192.0.2.1\n24\n\nx\n", "is no address"),
        ("^11\n4095\n", "from 1 to 4094"),
    ] {
        let mut menu = Menu::default();
        assert_eq!(press(&mut menu, script), []);
        let shown = shown(&menu);
        assert!(shown.contains(want), "{want:?} is not in {shown}");
    }
}

#[test]
fn escape_leads_out_of_every_page() {
    for script in ["^", "^1", "^11", "^11\n", "^11\n\n", "^2", "^21", "^21ab", "^3", "^4v", "^3v\n"] {
        let mut menu = Menu::default();
        press(&mut menu, script);
        press(&mut menu, "!!!!!");
        assert!(!menu.is_open(), "{script:?}");
    }
}

#[test]
fn the_bytes_of_linux_consoles_and_terminals_become_keys() {
    assert_eq!(Keys::decode(b"\x1b[[A"), [Key::F1]);
    assert_eq!(
        Keys::decode(b"\x1bOP\x1b[A\x1b[B\r\x7fx"),
        [Key::F1, Key::Up, Key::Down, Key::Enter, Key::Backspace, Key::Char('x')]
    );
    assert_eq!(Keys::decode(b"\x1b"), [Key::Escape]);
    assert_eq!(Keys::decode(b"\x1bx"), [Key::Escape, Key::Char('x')]);
    for unknown in [&b"\x1b[[B"[..], b"\x1b[1;5C", b"\x1b[", b"\x1bO", b"\x00\x03\xff\xc3\xa9"] {
        assert_eq!(Keys::decode(unknown), [], "{unknown:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn decoding_keys_ends_for_all_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Keys::decode(&bytes).len() <= bytes.len());
    }

    /// Whatever is pressed: a disk is only wiped when the last line before Enter was its serial number, typed on a page
    /// that shows it, and never one that must stay.
    #[test]
    fn no_sequence_of_keys_wipes_without_the_typed_confirmation(script in "[\\^\n\n\nv/!<12234aAbB1-]{0,120}") {
        let status = status();
        let mut menu = Menu::default();
        let mut line = String::new();
        for key in keys(&script) {
            let before = shown(&menu);
            let typing = before.contains("To wipe it type this");
            match key {
                Key::Char(character) if typing => line.push(character),
                Key::Backspace if typing => { line.pop(); }
                Key::Enter | Key::Up | Key::Down | Key::F1 if typing => {}
                _ => line.clear(),
            }
            if let Some(Action::Order(Order::Wipe { disk, typed })) = menu.handle(key, &status) {
                let known = status.disks.iter().find(|known| known.name == disk).unwrap();
                prop_assert!(key == Key::Enter && typing);
                prop_assert_eq!(&typed, &line);
                prop_assert_eq!(essence(&line), essence(known.confirmation().unwrap()));
                prop_assert!(before.contains(known.confirmation().unwrap()), "it was shown");
                prop_assert!(known.keep.is_empty());
            }
            if key == Key::Enter {
                line.clear();
            }
            prop_assert!(menu.lines(&status, 42).is_none_or(|lines| lines.len() < 40));
        }
    }

    /// Without the letters of any serial number there is no way at all.
    #[test]
    fn keys_that_are_in_no_serial_number_never_wipe(script in "[\\^\nv/!<234567890 xyz.-]{0,200}") {
        let mut menu = Menu::default();
        let wiped = press(&mut menu, &script).iter().any(|action| matches!(action, Action::Order(Order::Wipe { .. })));
        prop_assert!(!wiped);
    }
}
