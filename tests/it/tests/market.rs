//! End to end: three farms, two real images in QEMU, three simulated nodes, and bots that deal with each other. What
//! happens and what must come of it is in `croft_it::market`, which the demo plays too; a failure names its scene. With
//! machines it takes some ten minutes, so that runs with `CROFT_BOOT_MATRIX=full`.

use std::path::PathBuf;

use croft_it::grid::images;
use croft_it::market::{Market, SCENES};
use croft_it::{matrix, oci};

#[tokio::test(flavor = "multi_thread")]
async fn bots_find_negotiate_pay_approve_and_heal_without_people() {
    if !matrix::is_full() {
        return;
    }
    play(&images().unwrap().into_iter().map(|(_, image)| image).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_where_every_node_is_simulated() {
    play(&[]).await;
}

async fn play(images: &[PathBuf]) {
    let mut say = |text: &str| eprintln!("{text}");
    let dir = tempfile::tempdir().unwrap();
    let mut market = Market::begin(dir.path(), images, &oci::cache(), &mut say).await.unwrap();
    if let Err(error) = market.play(&mut say).await {
        panic!("{error:#}\n{}", market.table.show());
    }
    let played = market.table.rows().iter().filter(|row| row.stage.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(played.count(), SCENES.len(), "every scene has its row");
    eprintln!("{}", market.table.show());
    market.end().await.unwrap();
}
