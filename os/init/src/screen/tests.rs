//! The process without its process: a pseudo-terminal for the console, a socket pair for the agent.

use super::console::tests::pair;
use super::*;
use crate::log::Recorded;
use crate::stage::Stage;
use croft_screen::model::{Disk, Order};

/// What the screen wrote.
fn seen(master: &OwnedFd) -> String {
    let mut buffer = vec![0; 65536];
    let mut text = Vec::new();
    while let Ok(length @ 1..) = rustix::io::read(master, &mut buffer[..]) {
        text.extend_from_slice(&buffer[..length]);
    }
    // Blanks are not written: the cursor jumps over them.
    String::from_utf8_lossy(&text)
        .split("\x1b[")
        .map(|piece| piece.split_once('H').map_or(piece, |(_, rest)| rest))
        .collect::<Vec<_>>()
        .join(" ")
}

fn screen() -> (Screen, OwnedFd, OwnedFd) {
    let (console, master) = pair();
    let mut screen = Screen::new(console, None).unwrap();
    // Not this machine's.
    screen.kernel_log = None;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    screen.agent = Some(Agent { socket: ours, inbox: Inbox::default(), orders: VecDeque::new() });
    (screen, master, theirs)
}

/// One turn, with the frame that it gives.
fn turn(screen: &mut Screen) {
    screen.read_agent();
    screen.read_keys();
    screen.drawn = Instant::now().checked_sub(TICK).unwrap();
    screen.painter.forget();
    screen.draw();
}

#[test]
fn what_the_agent_tells_is_drawn_and_a_wrong_message_ends_the_connection() {
    let (mut screen, master, agent) = screen();
    let status = Status { name: "hill-7".into(), ..Status::default() };
    let bytes = encode(&ToScreen::Status(Box::new(status))).unwrap();
    rustix::io::write(&agent, &bytes).unwrap();
    turn(&mut screen);
    assert!(seen(&master).contains("node hill-7"));
    rustix::io::write(&agent, b"\xff\xff\xff\xff nonsense").unwrap();
    turn(&mut screen);
    assert!(screen.agent.is_none());
    assert!(seen(&master).contains("hill-7"), "what was known stays on the screen");
}

#[test]
fn an_order_reaches_the_agent_and_its_answer_the_person() {
    let (mut screen, master, agent) = screen();
    screen.status.disks = vec![Disk { name: "vda".into(), serial: "S1".into(), ..Disk::default() }];
    rustix::io::write(&master, b"\x1b[[A21s1\r").unwrap();
    turn(&mut screen);
    turn(&mut screen);
    let mut inbox = Inbox::default();
    let mut buffer = [0; 1024];
    let length = rustix::io::read(&agent, &mut buffer[..]).unwrap();
    inbox.push(&buffer[..length]);
    let order = ToAgent::decode(&inbox.next_message().unwrap().unwrap()).unwrap();
    assert_eq!(order, ToAgent::Order(Order::Wipe { disk: "vda".into(), typed: "s1".into() }));
    rustix::io::write(&agent, &encode(&ToScreen::Answer("vda is wiped".into())).unwrap()).unwrap();
    turn(&mut screen);
    assert!(seen(&master).contains("vda is wiped"));
}

#[test]
fn the_socket_is_for_root_alone_and_a_later_agent_takes_the_place_of_an_earlier_one() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    let (mut screen, master, _agent) = screen();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/screen");
    screen.listener = Some(listen(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    for name in ["first", "second"] {
        let mut agent = UnixStream::connect(&path).unwrap();
        let status = Status { name: name.into(), ..Status::default() };
        std::io::Write::write_all(&mut agent, &encode(&ToScreen::Status(Box::new(status))).unwrap()).unwrap();
        turn(&mut screen);
        assert!(seen(&master).contains(&format!("node {name}")));
    }
    // A socket of an earlier process is no obstacle.
    assert!(listen(&path).is_ok());
}

#[test]
fn without_an_agent_an_order_is_refused_at_once() {
    let (mut screen, master, _agent) = screen();
    screen.agent = None;
    screen.status.disks = vec![Disk { name: "vda".into(), serial: "S1".into(), ..Disk::default() }];
    rustix::io::write(&master, b"\r21s1\r").unwrap();
    turn(&mut screen);
    assert!(seen(&master).contains("nothing was done"));
}

#[test]
fn the_screen_reads_the_stages_as_they_are_logged() {
    let log = Recorded::default();
    let running = Stage::Network.begin(&log);
    running.waiting("no carrier on eth0");
    let _ = running.failed_because("no carrier on eth0: check the cable");
    let _ = Stage::Mounts.begin(&log).ok("");
    let mut stages = Stages::default();
    for line in log.lines() {
        assert!(stages.take_line(5, &line), "{line}");
    }
    assert_eq!(stages.total, Stage::ALL.len());
    assert_eq!(stages.list[1].detail, "no carrier on eth0: check the cable");
    assert_eq!(stages.list[0].name, "mounts");
}
