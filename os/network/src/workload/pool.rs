//! Which subnet a deployment gets. Pure: the caller says which ones are taken.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::workload::DeploymentId;

/// A private network cut into equal subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    net: Ipv4Net,
    subnet_prefix_len: u8,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    #[error(
        "workload pool {0} is not a private network (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10)"
    )]
    NotPrivate(Ipv4Net),
    #[error("workload pool {pool} can't be cut into subnets of /{subnet}: choose from /{} to /29", pool.prefix_len())]
    BadSubnet { pool: Ipv4Net, subnet: u8 },
    #[error(
        "all {count} subnets of workload pool {pool} are taken: end a contract or configure a larger pool"
    )]
    Exhausted { pool: Ipv4Net, count: u32 },
}

impl Default for Pool {
    /// 256 deployments of 253 guests.
    fn default() -> Self {
        Self { net: Ipv4Net::new_assert(Ipv4Addr::new(10, 90, 0, 0), 16), subnet_prefix_len: 24 }
    }
}

impl Pool {
    pub fn new(net: Ipv4Net, subnet_prefix_len: u8) -> Result<Self, PoolError> {
        let net = net.trunc();
        let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];
        let within = |range: &str| range.parse::<Ipv4Net>().is_ok_and(|range| range.contains(&net));
        if !private.iter().any(|range| within(range)) {
            return Err(PoolError::NotPrivate(net));
        }
        if subnet_prefix_len < net.prefix_len() || subnet_prefix_len > 29 {
            return Err(PoolError::BadSubnet { pool: net, subnet: subnet_prefix_len });
        }
        Ok(Self { net, subnet_prefix_len })
    }

    pub fn net(self) -> Ipv4Net {
        self.net
    }

    /// How many deployments fit.
    pub fn count(self) -> u32 {
        1 << (self.subnet_prefix_len - self.net.prefix_len())
    }

    /// The subnet that `address` lies in; `None` outside the pool.
    pub(crate) fn subnet_of(self, address: Ipv4Addr) -> Option<Ipv4Net> {
        if !self.net.contains(&address) {
            return None;
        }
        Ipv4Net::new(address, self.subnet_prefix_len).ok().map(|net| net.trunc())
    }

    /// A free subnet: the one that the id points to, or the next. The same on every node while few are taken.
    pub(crate) fn allocate(self, id: &DeploymentId, taken: &BTreeSet<Ipv4Net>) -> Result<Ipv4Net, PoolError> {
        let count = self.count();
        let first = (id.pool_seed() % u64::from(count)) as u32;
        (0..count)
            .map(|step| self.subnet((first + step) % count))
            .find(|subnet| !taken.contains(subnet))
            .ok_or(PoolError::Exhausted { pool: self.net, count })
    }

    fn subnet(self, place: u32) -> Ipv4Net {
        let size = 1u32 << (32 - self.subnet_prefix_len);
        Ipv4Net::new_assert((u32::from(self.net.network()) + place * size).into(), self.subnet_prefix_len)
    }

    /// First host: the guests' way out.
    pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Net {
        Self::host(subnet, 1)
    }

    /// Guests that fit into a subnet.
    pub(crate) fn guests(self) -> u32 {
        (1 << (32 - self.subnet_prefix_len)) - 3
    }

    /// Address of guest `index`, from 0. The caller has checked it against `guests`.
    pub(crate) fn guest(subnet: Ipv4Net, index: u16) -> Ipv4Net {
        Self::host(subnet, u32::from(index) + 2)
    }

    fn host(subnet: Ipv4Net, place: u32) -> Ipv4Net {
        Ipv4Net::new_assert((u32::from(subnet.network()) + place).into(), subnet.prefix_len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_within_a_subnet_are_fixed() {
        let subnet = net("10.90.7.0/24");
        assert_eq!(Pool::gateway(subnet).to_string(), "10.90.7.1/24");
        assert_eq!(Pool::guest(subnet, 0).to_string(), "10.90.7.2/24");
        let pool = Pool::default();
        let last = u16::try_from(pool.guests()).unwrap() - 1;
        assert_eq!(Pool::guest(subnet, last).to_string(), "10.90.7.254/24");
        assert_eq!(pool.subnet_of("10.90.7.99".parse().unwrap()), Some(subnet));
        assert_eq!(pool.subnet_of("10.91.7.99".parse().unwrap()), None);
    }

    #[test]
    fn a_full_pool_says_so() {
        let pool = Pool::new(net("10.90.0.0/22"), 24).unwrap();
        let mut taken = BTreeSet::new();
        for byte in 0..4 {
            taken.insert(pool.allocate(&DeploymentId::new([byte; 32]), &taken).unwrap());
        }
        assert_eq!(taken.len(), 4);
        assert_eq!(
            pool.allocate(&DeploymentId::new([9; 32]), &taken).unwrap_err().to_string(),
            "all 4 subnets of workload pool 10.90.0.0/22 are taken: end a contract or configure a larger pool"
        );
    }

    #[test]
    fn a_public_or_uncuttable_pool_is_refused() {
        assert!(Pool::new(net("8.8.0.0/16"), 24).unwrap_err().to_string().contains("not a private network"));
        assert!(Pool::new(net("10.0.0.0/7"), 24).is_err());
        let text = Pool::new(net("10.90.0.0/16"), 12).unwrap_err().to_string();
        assert_eq!(
            text,
            "workload pool 10.90.0.0/16 can't be cut into subnets of /12: choose from /16 to /29"
        );
        assert!(Pool::new(net("10.90.0.0/16"), 30).is_err());
    }

    proptest! {
        #[test]
        fn an_allocation_is_free_in_the_pool_and_repeatable(id: [u8; 32], taken in proptest::collection::btree_set(0u32..256, 0..255)) {
            let pool = Pool::default();
            let taken: BTreeSet<Ipv4Net> = taken.into_iter().map(|place| pool.subnet(place)).collect();
            let id = DeploymentId::new(id);
            let subnet = pool.allocate(&id, &taken).unwrap();
            prop_assert!(!taken.contains(&subnet));
            prop_assert!(pool.net().contains(&subnet));
            prop_assert_eq!(pool.allocate(&id, &taken).unwrap(), subnet);
        }
    }
}
