//! Stages that failed when the boot came by and went well later. Whoever reads the list of stages on the monitor or the
//! serial line must find there what is so now: a machine whose cable was plugged in late is not one without a network.

use std::time::Instant;

use croft_init::log::Log;
use croft_init::stage::Stage;
use croft_network::NetworkStatus;
use tokio::sync::watch;

use crate::voice::Heard;

/// What is still to come.
pub struct Late<'a> {
    log: &'a dyn Log,
    /// When the boot's stages began.
    began: Instant,
    network: Option<watch::Receiver<NetworkStatus>>,
    ledger: bool,
    register: bool,
}

impl<'a> Late<'a> {
    /// Of a boot that found a network, its ledger and its registration, or not.
    #[must_use]
    pub fn new(
        log: &'a dyn Log,
        began: Instant,
        network: watch::Receiver<NetworkStatus>,
        ledger_in_reach: bool,
        registered: bool,
    ) -> Self {
        let has_uplink = network.borrow().uplink().is_some();
        let network = (!has_uplink).then_some(network);
        Self { log, began, network, ledger: !ledger_in_reach, register: !registered }
    }

    /// Says that the network is there, when it is.
    pub fn look(&mut self) {
        let uplink = self.network.as_ref().and_then(|status| {
            let status = status.borrow();
            let uplink = status.uplink()?;
            let address = uplink.address().map_or_else(String::new, |address| address.to_string());
            Some(format!("{} {address}", uplink.name))
        });
        if let Some(uplink) = uplink {
            self.network = None;
            self.ok(Stage::Network, &uplink);
        }
    }

    /// Says that the ledger is there, or the registration, when what was heard shows it.
    pub fn heard(&mut self, what: &Heard) {
        let height = match what {
            Heard::Pulled(pulled) => Some(pulled.height),
            Heard::Registered { height, .. } => Some(*height),
            _ => None,
        };
        if let Some(height) = height.filter(|_| std::mem::take(&mut self.ledger)) {
            self.look();
            self.ok(Stage::Ledger, &format!("height {height}"));
        }
        if let Heard::Registered { session, height, standing, .. } = what
            && std::mem::take(&mut self.register)
        {
            self.ok(Stage::Register, &format!("session {session} at height {height}, {standing}"));
        }
    }

    fn ok(&self, stage: Stage, detail: &str) {
        stage.begin_at(self.log, self.began).ok(&format!("{detail} (later than the boot waited)"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use croft_init::log::Recorded;
    use croft_network::{LinkStatus, NetworkStatus};
    use croft_protocol::record::TrustClass;

    use super::*;
    use crate::contracts::Pulled;
    use crate::register::Standing;

    fn oks(log: &Recorded) -> Vec<String> {
        let lines = log.lines();
        let oks = lines.iter().filter(|line| line.contains(": ok in "));
        oks.map(|line| line.split(" in ").next().unwrap_or_default().to_owned()).collect()
    }

    fn pulled() -> Heard {
        Heard::Pulled(Pulled { height: 7, session: 0, contracts: BTreeMap::new(), refused: Vec::new() })
    }

    fn registered() -> Heard {
        let standing = Standing { class: TrustClass::Plain, reasons: Vec::new() };
        Heard::Registered { session: 3, height: 8, reported_until_ms: 0, standing }
    }

    #[test]
    fn what_comes_late_is_told_once_and_what_was_in_time_is_not_told_again() {
        let log = Recorded::default();
        let (status, seen) = watch::channel(NetworkStatus::default());
        let mut late = Late::new(&log, Instant::now(), seen, false, false);
        late.look();
        assert_eq!(oks(&log), [""; 0]);
        let link = LinkStatus {
            name: "eth0".into(),
            index: 2,
            mac: croft_network::MacAddr([2, 0, 0, 0, 0, 1]),
            carrier: true,
            mtu_bytes: 1500,
            mode: croft_network::LinkMode::Dhcp,
            state: croft_network::status::LinkState::Ready,
            addresses: Vec::new(),
            gateways: Vec::new(),
            dns: Vec::new(),
            ntp: Vec::new(),
            dhcp_server: None,
            last_error: None,
        };
        status.send_replace(NetworkStatus {
            links: vec![link],
            uplink: Some("eth0".into()),
            ..NetworkStatus::default()
        });
        for _ in 0..2 {
            late.heard(&Heard::NotReported { reason: String::new() });
            late.heard(&pulled());
            late.heard(&registered());
            late.look();
        }
        assert_eq!(
            oks(&log),
            [
                "croft: stage 5/11 network: ok",
                "croft: stage 9/11 ledger: ok",
                "croft: stage 10/11 register: ok"
            ]
        );
        assert!(
            log.lines()
                .iter()
                .any(|line| line.ends_with("session 3 at height 8, plain (later than the boot waited)"))
        );

        let log = Recorded::default();
        let mut late = Late::new(&log, Instant::now(), status.subscribe(), true, true);
        late.heard(&registered());
        late.look();
        assert_eq!(log.lines(), [""; 0]);
    }
}
