//! A grid with many nodes: farms that are served by bots of their own; in one country three nodes that live, in the others
//! many that are only on the ledger, as if they were switched off. A replica takes so many connections from one address
//! only, so that not all can live.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use croft_it::grid::{FarmPlan, Grid};
use croft_it::service::Service;
use croft_protocol::boot::BootConfig;
use croft_protocol::command::SignedJoin;
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::{Capacity, Command, CommandBody, Hash, Name, SecretKey, SignedCommand, limits};
use croft_transport::Client;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::timeout;

pub(crate) const COUNTRIES: [&str; 8] = ["be", "nl", "de", "fr", "it", "es", "se", "pl"];
/// Where the nodes live, and how many, each in a farm of its own.
pub(crate) const ALIVE: &str = "lu";
const LIVE: usize = 3;
/// Commands on their way at a time, over so many connections.
const IN_FLIGHT: usize = 32;
const CONNECTIONS: usize = 4;
/// All nodes are on the ledger within this.
const REGISTERED: Duration = Duration::from_secs(600);

/// Names of farms and of what belongs to them.
struct Names {
    farm: String,
    bot: String,
}

pub(crate) struct Town {
    pub(crate) grid: Grid,
    pub(crate) farmers: Vec<Service>,
    nodes: Vec<Service>,
    pub(crate) boot: BootConfig,
}

impl Town {
    /// One farm in each country, and three where nodes live.
    pub(crate) async fn build(dir: &Path, nodes: usize) -> Result<Self> {
        let grid = Grid::start(dir, 1).await?;
        let (mut farmers, mut live, mut boots) = (Vec::new(), Vec::new(), Vec::new());
        for (number, country) in COUNTRIES.into_iter().chain([ALIVE; LIVE]).enumerate() {
            let names = Names { farm: format!("farm-{number}"), bot: format!("farmer-{number}") };
            let prices = [10 + number as u64, 5];
            let plan = FarmPlan { name: &names.farm, bot: &names.bot, country, node: "unused", prices };
            let boot = grid.open_farm(plan).await?.process;
            let serve = ["--bot", &names.bot, "farm", "serve", &names.farm];
            farmers.push(grid.service(&names.bot, &serve, &format!("serves {}", names.farm)).await?);
            if country == ALIVE {
                live.push(start_node(&grid, &boot, number).await?);
            } else {
                boots.push(BootConfig::parse(&std::fs::read_to_string(boot)?)?);
            }
        }
        let boot = boots.first().cloned().context("there are farms")?;
        let joins: Vec<SignedJoin> =
            boots.iter().map(|boot| boot.farm.permission()).collect::<Result<_, _>>()?;
        let all = register(&boot, &joins, nodes);
        timeout(REGISTERED, all)
            .await
            .with_context(|| format!("{nodes} nodes are not on the ledger after {REGISTERED:?}"))??;
        Ok(Self { grid, farmers, nodes: live, boot })
    }

    pub(crate) async fn end(self) -> Result<()> {
        for service in self.farmers.into_iter().chain(self.nodes) {
            service.stop().await?;
        }
        self.grid.stop().await
    }
}

async fn start_node(grid: &Grid, boot: &Path, number: usize) -> Result<Service> {
    let name = format!("live-{number}");
    let dir = grid.dir().join(&name);
    let arguments = ["--name", &name, "--cpu", "60", "--memory", "240G", "--report-every", "600"];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
    for (flag, path) in [("--boot-config", boot), ("--dir", &dir)] {
        arguments.extend([flag.to_owned(), path.display().to_string()]);
    }
    grid.program(&name, "sim_node", &arguments, "registered").await
}

/// Puts nodes on the ledger, each by its own command.
async fn register(boot: &BootConfig, joins: &[SignedJoin], nodes: usize) -> Result<()> {
    let key = |role: &str, number: usize| {
        SecretKey::from_seed(&Hash::of_bytes(format!("bench market {role} {number}").as_bytes()).0)
    };
    let replicas = &boot.grid.replicas;
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|number| Client::new(&key("registrar", number), replicas.clone()))
        .collect::<Result<_, _>>()?;
    // A replica that is busy with the first ones would keep the others waiting for their handshake.
    for client in &clients {
        client.tip().await?;
    }
    let registered = stream::iter(0..nodes).map(|number| {
        let (client, node) = (&clients[number % CONNECTIONS], key("node", number));
        let join = &joins[number % joins.len()];
        let command =
            Command::RegisterNode { node: body(number, join)?, join: Some(join.clone()), attestation: None };
        let body = CommandBody {
            chain: boot.grid.chain,
            author: node.public(),
            sequence: 0,
            expires_height: limits::EXPIRY_BLOCKS / 2,
            command,
        };
        let command = SignedCommand::sign(body, &node);
        anyhow::Ok(async move { client.submit(command).await.map(drop).map_err(anyhow::Error::from) })
    });
    registered.try_buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    for client in clients {
        client.close().await;
    }
    Ok(())
}

/// Sizes in steps, so that many are alike, as machines are.
fn body(number: usize, join: &SignedJoin) -> Result<NodeBody> {
    let step = number as u64;
    Ok(NodeBody {
        farm: join.join.farm,
        name: Name::new(&format!("node-{number}"))?,
        sealing_key: [7; 32],
        capacity: Capacity {
            cpu_millis: 4_000 * (1 + step % 16),
            memory_bytes: (8 << 30) * (1 + step / 7 % 16),
            ssd_bytes: (256 << 30) * (1 + step % 4),
            ..Capacity::default()
        },
        hardware: HardwareSummary::default(),
        trust: TrustClass::Plain,
        addresses: vec!["192.0.2.1".to_owned()],
        release: "0.1.0".to_owned(),
        session: 1,
        troubles: Vec::new(),
    })
}
