//! `croft farm policy`: which releases a farm's machines take, and when.

use croft_protocol::release::FarmPolicy;
use croft_protocol::{BotId, Command, FarmId, Name};
use serde::Serialize;

use super::{CommandError, Context};
use crate::exit::Failure;
use crate::flags::PolicyFlags;
use crate::terminal::push;

#[derive(Debug, thiserror::Error)]
enum PolicyError {
    #[error("farm '{farm}' belongs to another bot ({owner}), not to '{bot}': choose the owner with --bot")]
    NotOurs { farm: Name, owner: BotId, bot: Name },
    #[error("farm '{farm}' follows no channel yet: name one with --channel, such as stable")]
    NoChannel { farm: Name },
}

#[derive(Serialize)]
struct PolicyView {
    farm: Name,
    id: FarmId,
    policy: Option<FarmPolicy>,
}

impl PolicyView {
    fn text(&self) -> String {
        let Some(policy) = &self.policy else {
            return format!("farm '{}' has no policy: its machines take no releases\n", self.farm);
        };
        let FarmPolicy { channel, share_per_mille, window, hold } = policy;
        let mut text = format!("farm '{}' follows channel '{channel}'", self.farm);
        push!(text, "{}\n", if *hold { ", but holds upgrades" } else { "" });
        push!(text, "  share   {share_per_mille} of 1000 machines\n");
        match window {
            None => push!(text, "  window  at any time\n"),
            Some(window) => push!(
                text,
                "  window  from {:02}:{:02} UTC for {} minutes\n",
                window.start_minute / 60,
                window.start_minute % 60,
                window.duration_minutes
            ),
        }
        text
    }
}

pub(super) async fn policy(c: &mut Context<'_>, flags: PolicyFlags) -> Result<(), Failure> {
    let changes = flags.channel.is_some()
        || flags.share.is_some()
        || flags.window.is_some()
        || flags.hold
        || flags.resume;
    let grid = c.reading_grid()?;
    let missing = || CommandError::NoFarm { farm: flags.farm.clone(), grid: grid.name().clone() };
    let (id, farm) = grid.farm_named(&flags.farm).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let mut policy = grid.farm_policy(id).await?;
    grid.close().await;
    if changes {
        let acting = c.acting()?;
        if farm.owner != acting.id() {
            let (farm, owner, bot) = (flags.farm, farm.owner, acting.name.clone());
            return Err(Failure::refused(PolicyError::NotOurs { farm, owner, bot }));
        }
        let changed = changed(policy, &flags)?;
        let command = Command::SetFarmPolicy { farm: id, policy: changed };
        acting.grid.submit(&acting.key, &command).await?;
        policy = acting.grid.farm_policy(id).await?;
        acting.grid.close().await;
    }
    c.terminal.result(&PolicyView { farm: flags.farm, id, policy }, PolicyView::text)
}

/// What is named is changed, the rest stays.
fn changed(before: Option<FarmPolicy>, flags: &PolicyFlags) -> Result<FarmPolicy, Failure> {
    let channel = flags.channel.clone().or_else(|| before.as_ref().map(|policy| policy.channel.clone()));
    let missing = || PolicyError::NoChannel { farm: flags.farm.clone() };
    let channel = channel.ok_or_else(|| Failure::usage(missing()))?;
    let (share, window, hold) =
        before.map_or((1000, None, false), |policy| (policy.share_per_mille, policy.window, policy.hold));
    Ok(FarmPolicy {
        channel,
        share_per_mille: flags.share.unwrap_or(share),
        window: flags.window.map_or(window, |window| window.0),
        hold: flags.hold || hold && !flags.resume,
    })
}
