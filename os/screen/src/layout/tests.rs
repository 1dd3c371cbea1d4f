//! Golden frames in `golden/`; `CROFT_BLESS=1` writes them anew, for a person to look at.

use super::*;
use crate::menu::Key;
use crate::model::{Disk, Line, Link, Workload};
use proptest::prelude::*;

const ID: &str = "1b2f77aa90c3d4e5f60718293a4b5c6d7e8f9001122334455667788991234abc";

fn line(tone: Tone, text: &str) -> Line {
    Line::new(tone, text)
}

fn well() -> Status {
    Status {
        version: "0.1.0".into(),
        name: "n1".into(),
        farm: "alpha".into(),
        id: ID.into(),
        fingerprint: "1b2f77aa".into(),
        trust: "plain".into(),
        ledger: line(Tone::Good, "grid demo, height 1204"),
        registration: line(Tone::Good, "registered, session 3"),
        links: vec![Link {
            name: "eth0".into(),
            mac: "52:54:00:c0:f7:01".into(),
            addresses: vec!["10.0.2.15/24".into()],
            state: line(Tone::Good, "ready"),
        }],
        disks: vec![Disk {
            name: "vda".into(),
            size: "20 GiB".into(),
            serial: "croft-data-0".into(),
            verdict: line(Tone::Good, "data disk of this node"),
            health: line(Tone::Plain, "health unknown: a virtual disk tells none"),
            ..Disk::default()
        }],
        workloads: vec![Workload { name: "web".into(), state: line(Tone::Good, "running") }],
    }
}

fn boot_of(lines: &[(u32, &str)]) -> Stages {
    let mut stages = Stages::default();
    for (severity, line) in lines {
        stages.take_line(*severity, &format!("croft: {line}"));
    }
    stages
}

fn done() -> Stages {
    let names = [
        "mounts",
        "clock",
        "entropy",
        "devices",
        "network",
        "inventory",
        "disks",
        "identity",
        "ledger",
        "register",
        "reconcile",
    ];
    let lines: Vec<String> =
        names.iter().enumerate().map(|(n, name)| format!("stage {}/11 {name}: ok in 5 ms", n + 1)).collect();
    boot_of(&lines.iter().map(|line| (5, line.as_str())).collect::<Vec<_>>())
}

fn view<'a>(status: &'a Status, stages: &'a Stages, menu: &'a Menu) -> View<'a> {
    View { status, stages, menu, agent: true }
}

fn golden(name: &str, frame: &Frame) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/layout/golden/{name}.txt"));
    let text = frame.text();
    if std::env::var_os("CROFT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, known, "the frame {name} has changed: look at it, then run with CROFT_BLESS=1");
}

#[test]
fn a_node_that_is_well_shows_all_on_the_smallest_console() {
    let frame = render(view(&well(), &done(), &Menu::default()), Size { columns: 80, rows: 25 });
    golden("well-80x25", &frame);
    assert!(frame.text().contains("\u{2588}"), "the code is there");
}

#[test]
fn a_large_console_shows_the_same_with_room() {
    let frame = render(view(&well(), &done(), &Menu::default()), Size { columns: 160, rows: 50 });
    golden("well-160x50", &frame);
}

#[test]
fn a_boot_without_a_cable_names_the_card_and_the_remedy() {
    let stages = boot_of(&[
        (5, "stage 1/11 mounts: ok in 5 ms"),
        (5, "stage 2/11 clock: ok in 5 ms"),
        (5, "stage 3/11 entropy: ok in 5 ms"),
        (5, "stage 4/11 devices: ok in 5 ms"),
        (3, "stage 5/11 network: failed in 10003 ms: no carrier on enp3s0: check the cable"),
        (5, "stage 9/11 ledger: waiting: no replica answers"),
    ]);
    let mut status = Status { version: "0.1.0".into(), ..Status::default() };
    status.links = vec![Link {
        name: "enp3s0".into(),
        mac: "52:54:00:c0:f7:01".into(),
        state: line(Tone::Bad, "no carrier on enp3s0: check the cable"),
        ..Link::default()
    }];
    status.disks = vec![Disk {
        name: "sda".into(),
        size: "500 GB".into(),
        model: "Acme Rotating Rust".into(),
        verdict: line(
            Tone::Warning,
            "not touched: it holds an ntfs filesystem 'Holidays'; to give it to the node press F1 and wipe it",
        ),
        ..Disk::default()
    }];
    let frame = render(view(&status, &stages, &Menu::default()), Size { columns: 80, rows: 25 });
    golden("no-cable-80x25", &frame);
}

#[test]
fn a_node_that_can_not_run_says_why() {
    let stages = boot_of(&[
        (5, "stage 4/11 devices: ok in 5 ms"),
        (3, "the node can't run: no disk has a farm's addition: make the medium with 'croft farm image'"),
        (3, "node exited with status 1 after 0.3 s: start 3 in 2 s"),
    ]);
    let status = Status { version: "0.1.0".into(), ..Status::default() };
    let menu = Menu::default();
    let frame =
        render(View { agent: false, ..view(&status, &stages, &menu) }, Size { columns: 80, rows: 25 });
    golden("cannot-run-80x25", &frame);
}

#[test]
fn too_much_is_cut_fairly_and_counted() {
    let mut status = well();
    status.workloads = vec![status.workloads[0].clone(); 60];
    status.disks = vec![status.disks[0].clone(); 20];
    let frame = render(view(&status, &done(), &Menu::default()), Size { columns: 80, rows: 25 });
    golden("crowded-80x25", &frame);
    let text = frame.text();
    for title in ["Boot", "Network", "Disks", "Ledger", "Workloads", "more"] {
        assert!(text.contains(title), "{title} is not in\n{text}");
    }
}

#[test]
fn a_small_terminal_gets_lines_without_the_code() {
    let frame = render(view(&well(), &done(), &Menu::default()), Size { columns: 40, rows: 12 });
    golden("well-40x12", &frame);
    assert!(!frame.text().contains('\u{2588}'));
}

#[test]
fn the_menu_takes_the_place_of_the_sections_and_leaves_the_code() {
    let (status, stages) = (well(), done());
    let mut menu = Menu::default();
    menu.handle(Key::F1, &status);
    golden("menu-80x25", &render(view(&status, &stages, &menu), Size { columns: 80, rows: 25 }));
    menu.handle(Key::Char('2'), &status);
    menu.handle(Key::Enter, &status);
    for character in "croft".chars() {
        menu.handle(Key::Char(character), &status);
    }
    golden("wipe-80x25", &render(view(&status, &stages, &menu), Size { columns: 80, rows: 25 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Names of any length and alphabet on consoles of any size: it never panics, and shows nothing but glyphs.
    #[test]
    fn any_status_fits_any_console(
        texts in prop::collection::vec(any::<String>(), 12),
        columns in 0_usize..200,
        rows in 0_usize..70,
        count in 0_usize..70,
        keys in prop::collection::vec(0_usize..6, 0..12),
    ) {
        let text = |n: usize| texts[n].repeat(1 + n % 3);
        let bad = line(Tone::Bad, &text(0));
        let link = Link { name: text(1), mac: text(2), addresses: vec![text(3); 3], state: bad.clone() };
        let disk = Disk { name: text(4), size: text(5), model: text(6), serial: text(7), verdict: bad.clone(),
            health: bad.clone(), keep: String::new() };
        let status = Status {
            version: text(8), name: text(9), farm: text(10), id: text(11), fingerprint: text(1), trust: text(2),
            ledger: bad.clone(), registration: bad.clone(), links: vec![link; count], disks: vec![disk; count],
            workloads: vec![Workload { name: text(3), state: bad }; count],
        }.bounded();
        let mut stages = Stages::default();
        for number in 1..12 {
            stages.take_line(3, &format!("croft: stage {number}/11 {}: waiting: {}", text(4), text(number)));
        }
        stages.take_line(3, &format!("croft: {}", text(5)));
        let mut menu = Menu::default();
        for key in keys {
            let all = [Key::F1, Key::Enter, Key::Down, Key::Char('1'), Key::Up, Key::Char('x')];
            menu.handle(all[key], &status);
        }
        let frame = render(view(&status, &stages, &menu), Size { columns, rows });
        prop_assert_eq!(frame.text().lines().count(), rows);
        let known = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() || "\u{2580}\u{2584}\u{2588}".contains(c);
        prop_assert!(frame.text().chars().all(known));
    }
}
