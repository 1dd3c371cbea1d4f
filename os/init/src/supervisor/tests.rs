use super::*;

/// Drives a supervisor through virtual time and remembers what it did.
struct Bench {
    supervisor: Supervisor,
    now: Time,
    done: Vec<(Time, Action)>,
    next_pid: i32,
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Bench {
    fn new() -> Self {
        Self { supervisor: Supervisor::new(Policy::default()), now: secs(3), done: Vec::new(), next_pid: 100 }
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        let actions = self.supervisor.handle(self.now, input);
        self.done.extend(actions.iter().map(|action| (self.now, action.clone())));
        actions
    }

    /// Lets time pass, deadline by deadline, as the run loop does.
    fn pass(&mut self, span: Duration) -> Vec<Action> {
        let end = self.now + span;
        let mut actions = Vec::new();
        while let Some(deadline) = self.supervisor.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            let before = actions.len();
            actions.extend(self.give(Input::Tick));
            assert!(
                self.supervisor.deadline().is_none_or(|next| next > self.now) || actions.len() > before,
                "a deadline at {deadline:?} that changes nothing would spin"
            );
        }
        self.now = end;
        actions
    }

    /// Starts node whenever it is asked for.
    fn started(&mut self) -> i32 {
        self.next_pid += 1;
        let pid = self.next_pid;
        self.give(Input::NodeStarted { pid });
        pid
    }

    fn running() -> (Self, i32) {
        let mut bench = Self::new();
        assert!(bench.give(Input::Begin).contains(&Action::StartNode));
        let pid = bench.started();
        (bench, pid)
    }

    fn alive_for(&mut self, span: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..span.as_secs() / 5 {
            actions.extend(self.pass(secs(5)));
            actions.extend(self.give(Input::Message(Message::Alive)));
        }
        actions
    }
}

fn texts(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Log { text, .. } => Some(text.clone()),
            _ => None,
        })
        .collect()
}

fn says(actions: &[Action], part: &str) -> bool {
    texts(actions).iter().any(|text| text.contains(part))
}

#[test]
fn node_is_restarted_with_growing_pauses() {
    let (mut bench, mut pid) = Bench::running();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        bench.give(Input::Ended { pid, end: End::Exited(1) });
        let crashed = bench.now;
        while !bench.done.last().is_some_and(|(_, action)| *action == Action::StartNode) {
            bench.pass(secs(1));
            assert!(bench.now < crashed + secs(100), "never restarted");
        }
        pauses.push(bench.now.saturating_sub(crashed).as_secs());
        pid = bench.started();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn a_stable_run_forgives_earlier_failures() {
    let (mut bench, pid) = Bench::running();
    bench.give(Input::Ended { pid, end: End::Killed(11) });
    bench.pass(secs(1));
    let pid = bench.started();
    bench.give(Input::Ended { pid, end: End::Killed(11) });
    bench.pass(secs(2));
    let pid = bench.started();
    bench.alive_for(secs(130));
    let actions = bench.give(Input::Ended { pid, end: End::Killed(11) });
    assert!(says(&actions, "was killed by signal 11 (SIGSEGV) after 130.0 s: start 2 in 1 s"), "{actions:?}");
}

#[test]
fn a_missing_node_says_what_is_missing_and_is_tried_again() {
    let mut bench = Bench::new();
    bench.give(Input::Begin);
    let actions = bench.give(Input::NodeNotStarted { reason: "/usr/bin/node: no such file".into() });
    assert!(
        says(&actions, "croft: node can't be started: /usr/bin/node: no such file: start 2 in 1 s"),
        "{actions:?}"
    );
    assert!(bench.pass(secs(1)).contains(&Action::StartNode));
}

#[test]
fn a_crash_at_once_points_at_nodes_own_words() {
    let (mut bench, pid) = Bench::running();
    let actions = bench.give(Input::Ended { pid, end: End::Exited(2) });
    assert!(says(&actions, "node exited with status 2 after 0.0 s (at once: its own lines above say why)"));
}

#[test]
fn orphans_that_end_do_not_concern_node() {
    let (mut bench, pid) = Bench::running();
    assert_eq!(bench.give(Input::Ended { pid: pid + 1, end: End::Exited(0) }), []);
    assert!(bench.supervisor.healthy(bench.now));
}

#[test]
fn the_watchdog_is_fed_while_node_speaks() {
    let (mut bench, _) = Bench::running();
    let fed = bench.alive_for(secs(600)).iter().filter(|action| **action == Action::FeedWatchdog).count();
    assert_eq!(fed, 60, "once every ten seconds");
}

#[test]
fn a_silent_node_is_killed_and_the_watchdog_starves_until_it_is_gone() {
    let (mut bench, pid) = Bench::running();
    bench.alive_for(secs(200));
    let actions = bench.pass(secs(59));
    assert!(!actions.contains(&Action::SignalNode { pid, signal: Signal::Kill }), "too early");
    let actions = bench.pass(secs(1));
    assert!(actions.contains(&Action::SignalNode { pid, signal: Signal::Kill }));
    assert!(says(&actions, "node hangs, silent for 60 s: killing it"), "{actions:?}");
    let starving = bench.pass(secs(25));
    assert!(!starving.contains(&Action::FeedWatchdog), "{starving:?}");
    let actions = bench.give(Input::Ended { pid, end: End::Killed(9) });
    assert!(
        actions.contains(&Action::FeedWatchdog),
        "healthy again while it waits for the restart: {actions:?}"
    );
}

#[test]
fn a_slow_start_is_given_its_grace_and_no_more() {
    let (mut bench, pid) = Bench::running();
    assert!(!says(&bench.pass(secs(119)), "hangs"));
    assert!(bench.pass(secs(1)).contains(&Action::SignalNode { pid, signal: Signal::Kill }));
}

#[test]
fn a_node_that_cannot_be_killed_restarts_the_machine_after_a_countdown() {
    let (mut bench, _) = Bench::running();
    bench.pass(secs(120));
    let actions = bench.pass(secs(30));
    assert!(says(&actions, "restarting: node is stuck in the kernel and can't be killed"), "{actions:?}");
    let actions = bench.pass(secs(200));
    assert!(says(&actions, "restarting in 20 s") && says(&actions, "restarting in 1 s"), "{actions:?}");
    assert_eq!(actions.last(), Some(&Action::Finish(Ending::Reboot)));
}

#[test]
fn a_crash_loop_restarts_the_machine_after_fifteen_minutes_even_when_each_run_said_alive() {
    let (mut bench, mut pid) = Bench::running();
    let mut crashes = 0;
    loop {
        bench.give(Input::Message(Message::Ready));
        bench.pass(secs(10));
        let actions = bench.give(Input::Ended { pid, end: End::Killed(6) });
        crashes += 1;
        if says(&actions, "restarting: node did not run well for 15 minutes") {
            break;
        }
        while !bench.done.last().is_some_and(|(_, action)| *action == Action::StartNode) {
            bench.pass(secs(1));
        }
        pid = bench.started();
        assert!(crashes < 100, "the machine never gives up");
    }
    assert!(bench.now >= secs(900) && bench.now < secs(1_100), "at {:?}", bench.now);
}

#[test]
fn a_crash_after_days_of_good_service_is_no_reason_to_restart_the_machine() {
    let (mut bench, pid) = Bench::running();
    bench.alive_for(secs(3 * 86_400));
    let actions = bench.give(Input::Ended { pid, end: End::Killed(6) });
    assert!(says(&actions, "start 2 in 1 s") && !says(&actions, "restarting"), "{actions:?}");
}

#[test]
fn the_shutdown_goes_in_order() {
    let (mut bench, pid) = Bench::running();
    bench.alive_for(secs(30));
    let asked = Input::Asked { ending: Ending::Poweroff, by: "the power button was pressed".into() };
    let actions = bench.give(asked);
    assert!(actions.contains(&Action::SignalNode { pid, signal: Signal::Terminate }));
    assert!(says(&actions, "croft: switching off: the power button was pressed"));
    assert!(
        bench
            .give(Input::Ended { pid, end: End::Exited(0) })
            .contains(&Action::SignalEveryone(Signal::Terminate))
    );
    assert!(bench.give(Input::NoProcessLeft).contains(&Action::Sync));
    assert!(bench.give(Input::Synced).contains(&Action::Unmount));
    let actions = bench.give(Input::Unmounted { left: vec![] });
    assert_eq!(actions.last(), Some(&Action::Finish(Ending::Poweroff)), "without a countdown");
    assert_eq!(bench.supervisor.deadline(), None);
}

#[test]
fn every_step_of_the_shutdown_has_a_limit() {
    let (mut bench, pid) = Bench::running();
    let began = bench.now;
    bench.give(Input::Message(Message::Reboot("release 7 is installed".into())));
    bench.pass(secs(600));
    let actions: Vec<Action> = bench.done.iter().map(|(_, action)| action.clone()).collect();
    let order: Vec<&Action> = actions
        .iter()
        .filter(|action| !matches!(action, Action::Log { .. } | Action::FeedWatchdog | Action::StartNode))
        .collect();
    assert_eq!(
        order,
        [
            &Action::SignalNode { pid, signal: Signal::Terminate },
            &Action::SignalNode { pid, signal: Signal::Kill },
            &Action::SignalEveryone(Signal::Terminate),
            &Action::SignalEveryone(Signal::Kill),
            &Action::Sync,
            &Action::Unmount,
            &Action::Finish(Ending::Reboot),
        ]
    );
    let finished = bench.done.last().unwrap().0;
    let took = finished.saturating_sub(began);
    assert!(took < secs(120), "took {took:?}");
    for part in [
        "restarting: node asks: release 7 is installed",
        "waiting for node to stop its workloads, 40 s left",
        "node did not stop within 45 s",
        "can't be killed",
        "disks did not take all data within 30 s",
        "unmounting did not end within 15 s",
    ] {
        assert!(says(&actions, part), "{part} is missing in {:#?}", texts(&actions));
    }
}

#[test]
fn the_watchdog_is_fed_through_an_ordered_shutdown() {
    let (mut bench, _) = Bench::running();
    bench.give(Input::Asked { ending: Ending::Reboot, by: "Ctrl-Alt-Del".into() });
    let actions = bench.pass(secs(40));
    assert!(actions.iter().filter(|action| **action == Action::FeedWatchdog).count() >= 3);
}

#[test]
fn the_first_request_wins_and_the_second_is_answered() {
    let (mut bench, _) = Bench::running();
    bench.give(Input::Asked { ending: Ending::Poweroff, by: "the power button was pressed".into() });
    let actions = bench.give(Input::Asked { ending: Ending::Reboot, by: "Ctrl-Alt-Del".into() });
    assert_eq!(texts(&actions), ["croft: already switching off, so this changes nothing: Ctrl-Alt-Del"]);
    let actions = bench.pass(secs(600));
    assert_eq!(actions.last(), Some(&Action::Finish(Ending::Poweroff)));
}

#[test]
fn a_request_during_the_pause_between_runs_skips_node() {
    let (mut bench, pid) = Bench::running();
    bench.give(Input::Ended { pid, end: End::Exited(1) });
    let actions = bench.give(Input::Asked { ending: Ending::Reboot, by: "Ctrl-Alt-Del".into() });
    assert!(actions.contains(&Action::SignalEveryone(Signal::Terminate)), "{actions:?}");
    assert!(!bench.pass(secs(600)).contains(&Action::StartNode), "node must not start in a shutdown");
}

#[test]
fn mounts_that_stay_are_named() {
    let (mut bench, pid) = Bench::running();
    bench.give(Input::Asked { ending: Ending::Reboot, by: "Ctrl-Alt-Del".into() });
    bench.give(Input::Ended { pid, end: End::Exited(0) });
    bench.give(Input::NoProcessLeft);
    bench.give(Input::Synced);
    let actions = bench.give(Input::Unmounted { left: vec!["/data".into()] });
    assert!(says(&actions, "still mounted at the end: /data"), "{actions:?}");
}

#[test]
fn late_messages_of_a_node_that_stops_change_nothing() {
    let (mut bench, pid) = Bench::running();
    bench.give(Input::Asked { ending: Ending::Reboot, by: "Ctrl-Alt-Del".into() });
    for late in [
        Input::Message(Message::Alive),
        Input::Message(Message::Poweroff("changed my mind".into())),
        Input::NodeStarted { pid: pid + 1 },
        Input::Synced,
        Input::NoProcessLeft,
        Input::Unmounted { left: vec![] },
        Input::Begin,
    ] {
        assert_eq!(bench.give(late.clone()), [], "{late:?}");
    }
}

#[test]
fn a_kernel_is_loaded_first_and_the_machine_ends_in_order_only_when_node_asks_again() {
    let (mut bench, pid) = Bench::running();
    let kernel: PathBuf = "/run/croft/kernel/release.efi".into();
    let actions = bench.give(Input::Message(Message::Load(kernel.clone())));
    assert!(actions.contains(&Action::LoadKernel(kernel.clone())), "{actions:?}");
    let ends = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::SignalNode { .. }));
    assert!(!ends(&actions), "nothing ends yet");
    let actions = bench.give(Input::Loaded { kernel: kernel.clone(), refused: None });
    assert!(!ends(&actions), "node has to say what it does in between: {actions:?}");
    let told = actions.contains(&Action::TellLoaded(kernel.clone()));
    assert!(told, "node hears of it when it can ask for it, not before: {actions:?}");
    let actions = bench.give(Input::Message(Message::Kexec(kernel)));
    assert!(actions.contains(&Action::SignalNode { pid, signal: Signal::Terminate }), "{actions:?}");
    bench.give(Input::Ended { pid, end: End::Exited(0) });
    bench.give(Input::NoProcessLeft);
    bench.give(Input::Synced);
    let actions = bench.give(Input::Unmounted { left: vec![] });
    assert!(actions.contains(&Action::Finish(Ending::Kexec)), "{actions:?}");
}

#[test]
fn a_kernel_that_is_refused_ends_nothing() {
    let (mut bench, _) = Bench::running();
    let kernel: PathBuf = "/run/croft/kernel/release.efi".into();
    bench.give(Input::Message(Message::Load(kernel.clone())));
    let actions = bench
        .give(Input::Loaded { kernel: kernel.clone(), refused: Some("it is no bootable kernel".into()) });
    let said = |actions: &[Action], expected: &str| {
        actions
            .iter()
            .any(|action| matches!(action, Action::Log { level: Level::Error, text } if text == expected))
    };
    let refused = "croft: /run/croft/kernel/release.efi can't be booted: it is no bootable kernel";
    assert!(said(&actions, refused), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::TellLoaded(_))), "{actions:?}");
    // Nor does it help to ask for it all the same, or for another one than was loaded.
    for loaded in [None, Some("/run/croft/kernel/other.efi")] {
        if let Some(other) = loaded {
            bench.give(Input::Loaded { kernel: other.into(), refused: None });
        }
        let actions = bench.give(Input::Message(Message::Kexec(kernel.clone())));
        let other = "croft: /run/croft/kernel/release.efi is not the kernel that was loaded: nothing ends";
        assert!(said(&actions, other), "{actions:?}");
        assert!(bench.supervisor.healthy(bench.now));
        let ends = |action: &Action| matches!(action, Action::SignalNode { .. } | Action::Finish(_));
        assert!(!actions.iter().any(ends), "{actions:?}");
    }
}
