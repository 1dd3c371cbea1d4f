//! Finding, deploying, approving, and an expert's recipe.

use anyhow::{Context, Result, ensure};

use super::{Market, SHOP, SMALL, WEB, has, is, number, path};
use crate::scene::{self, Say};
use crate::{http, oci};

/// Of the deployed server, for its whole day; less than what the second cheapest farm takes at first.
const MOST: u64 = 5_800_000;

/// The web server's deploy file under another name and port, small enough for two beside each other. Whether it is well is
/// asked from outside: on a busy machine a check of its own would restart it before it has come up.
pub(super) fn web(name: &str, port: u16) -> String {
    let unchecked: Vec<&str> = scene::WEB.lines().filter(|line| !line.starts_with("health")).collect();
    (unchecked.join("\n") + "\n")
        .replace("name = \"web\"", &format!("name = \"{name}\""))
        .replace("cpu = \"1\"", "cpu = \"0.5\"")
        .replace("18080", &port.to_string())
}

impl Market {
    /// Scene 1: who could run it and for what, and why the others could not.
    pub(super) async fn find(&mut self, say: Say<'_>) -> Result<String> {
        let find = ["find", "--country", "be,de", "--cpu", "1", "--memory", "1G", "--max-price", "560000"];
        let text = self.show("alice", &find, say).await?;
        has(&text, "not node 'n2' of farm 'beta': it is in nl, wanted is be or de")?;
        has(&text, "it costs 594 000 grains, the limit is 560 000 grains")?;
        has(&text, "not node 'g3' of farm 'gamma': CPUs: 1.000 needed, 0.500 free")?;
        let found = self.grid.json(find).await?;
        let fits = found["matches"].as_array().context("find lists matches")?;
        let names: Vec<&str> = fits.iter().filter_map(|fit| fit["node"].as_str()).collect();
        ensure!(names.len() == 3 && names[2] == "n1", "cheapest first, the machine last: {names:?}");
        for (fit, price) in fits.iter().zip([324_000, 324_000, 540_000]) {
            ensure!(number(fit, "price")? == price, "an hour of a CPU and a GiB costs {price}: {fit}");
            is(fit, "trust", "plain")?;
        }
        let excluded = found["excluded"].as_array().map_or(0, Vec::len);
        Ok(format!("{} match, {excluded} excluded with reasons", names.len()))
    }

    /// Scene 2: an order within a limit, with its reasons; then the workload answers.
    pub(super) async fn deploy(&mut self, say: Say<'_>) -> Result<String> {
        let file = self.file("app.toml", &web("web", WEB))?;
        let cost = self.grid.json(["--bot", "alice", "cost", &file]).await?;
        let before = self.balance("alice").await?;
        let deploy = ["deploy", &file, "--max-price", &MOST.to_string(), "--yes", "--explain", "--detach"];
        let text = self.show("alice", &deploy, say).await?;
        has(&text, "node 'n1' of farm 'alpha' in be for")?;
        has(&text, "not node 'n2' of farm 'beta'")?;
        has(&text, "of farm 'gamma': refused: it sells for at most 43200 s")?;
        let contract = self.contract("alice", "web").await?;
        let price = number(&contract, "price")?;
        let list = list_price(&cost, "n1")?;
        ensure!(price <= MOST && price < list, "{price} is what was agreed, {list} is the list price");
        let paid = before - self.balance("alice").await?;
        ensure!(paid == price, "{paid} left the wallet for a price of {price}");
        let answer = self.answers(0, "web", WEB).await?;
        self.until("alice", "web", "active").await?;
        let Some(answer) = answer else {
            return Ok(format!("{price} grains instead of {list}; simulated n1 runs it"));
        };
        ensure!(answer.body.contains("Croft"), "another server answers: {}", answer.body);
        Ok(format!("{price} grains instead of {list}; HTTP 200 from n1"))
    }

    /// Scene 3: nothing runs before the quorum; whoever is required and refuses ends it.
    pub(super) async fn approve(&mut self, say: Say<'_>) -> Result<String> {
        let approval = "\n[approval]\nthreshold = 3\n\
            approvers = [{ bot = \"olga\", weight = 2, required = true }, { bot = \"otto\" }]\n";
        let file = |name: &str| self.file(&format!("{name}.toml"), &(SMALL.replace("NAME", name) + approval));
        let (gate, dam) = (file("gate")?, file("dam")?);
        let text = self.show("alice", &["deploy", &gate, "--yes"], say).await?;
        has(&text, "'gate' agreed on node")?;
        let on = self.heard("workload gate: waits for its approvers").await?;
        let half = self.show("otto", &["approve", "alice/gate"], say).await?;
        has(&half, "it waits for olga (2, required), has 1 of 3")?;
        is(&self.contract("alice", "gate").await?, "state", "agreed")?;
        ensure!(self.unheard("workload gate: running"), "{on} ran it before its quorum");
        let text = self.show("olga", &["approve", "alice/gate"], say).await?;
        has(&text, "the quorum is reached with 3 of 3")?;
        ensure!(self.heard("workload gate: running").await? == on, "its own node runs it");
        self.until("alice", "gate", "active").await?;

        let before = self.balance("alice").await?;
        self.grid.croft(["--bot", "alice", "deploy", &dam, "--yes"]).await?;
        let held = before - self.balance("alice").await?;
        ensure!(held > 0, "a contract that waits has its price in escrow");
        let text = self.show("olga", &["approve", "alice/dam", "--refuse"], say).await?;
        has(&text, "it has ended: not approved")?;
        let after = self.balance("alice").await?;
        ensure!(after == before, "{held} were held, {} came back", after + held - before);
        ensure!(self.unheard("workload dam: running"), "a refused contract ran");
        Ok(format!("ran on {on} at weight 3 of 3; the refused one gave {held} grains back"))
    }

    /// Scene 5: what an expert wrote, deployed by somebody else with two parameters.
    pub(super) async fn recipe(&mut self, say: Say<'_>) -> Result<String> {
        self.shop_image().await?;
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/shop/recipe.toml");
        self.show("eve", &["recipe", "publish", file], say).await?;
        let port = format!("published={SHOP}");
        let deploy = ["--bot", "carol", "recipe", "deploy", "eve/shop", "--yes", "--name", "corner"];
        let values = ["--country", "nl", "--set", "greeting=good day", "--set", &port, "--detach"];
        say("carol$ croft recipe deploy eve/shop --set 'greeting=good day' --set published=18082");
        self.grid.croft(deploy.iter().chain(&values)).await?;
        let Some(first) = self.answers(1, "corner", SHOP).await? else {
            return Ok("simulated n2 runs it".to_owned());
        };
        let visitor = |body: &str| body.trim().strip_prefix("good day, visitor ")?.parse::<u32>().ok();
        let count =
            visitor(&first.body).with_context(|| format!("another server answers: {}", first.body))?;
        let second = http::get(self.address(1, SHOP)?, "/").await?;
        // Some of the questions of before may have been answered meanwhile.
        ensure!(visitor(&second.body) > Some(count), "the database counts: {}", second.body);
        say(&format!("  the shop says: {}", second.body.trim()));
        Ok("web server and database on n2, with a network of their own".to_owned())
    }

    /// The expert's image; made once.
    pub(super) async fn shop_image(&self) -> Result<()> {
        let known = self.grid.json(["image", "list"]).await?;
        let known =
            known["images"].as_array().is_some_and(|images| images.iter().any(|i| i["name"] == "shop"));
        if !known {
            let source = format!("{}:shop", path(&oci::shop_layout(&self.cache)?)?);
            self.grid.croft(["image", "build", &source, "--name", "shop"]).await?;
        }
        Ok(())
    }

    /// Waits until a contract is in a state.
    pub(super) async fn until(&self, bot: &str, name: &str, state: &str) -> Result<serde_json::Value> {
        let wait = async {
            loop {
                let contract = self.contract(bot, name).await?;
                if contract["state"] == state {
                    return anyhow::Ok(contract);
                }
            }
        };
        let waited = tokio::time::timeout(super::HEARD, wait).await;
        if let Ok(contract) = waited {
            return contract;
        }
        let last = self.contract(bot, name).await?;
        anyhow::bail!("'{name}' of '{bot}' is not {state} after {:?}: {last}", super::HEARD)
    }
}

/// What a node asks by its farm's list.
fn list_price(cost: &serde_json::Value, node: &str) -> Result<u64> {
    let matches = cost["matches"].as_array().context("cost lists matches")?;
    let its =
        matches.iter().find(|fit| fit["node"] == node).with_context(|| format!("{node} fits: {cost}"))?;
    number(its, "price")
}

#[cfg(test)]
mod tests {
    use super::super::KEPT;
    use super::*;

    #[test]
    fn the_kept_server_is_the_deployed_one_under_another_name_and_port() {
        let text = web("kept", KEPT);
        assert!(text.contains("name = \"kept\"") && text.contains("published = 18081"), "{text}");
        assert!(text.contains("cpu = \"0.5\"") && !text.contains("18080"), "{text}");
        assert!(!text.contains("health") && text.contains("[terms]"), "{text}");
    }
}
