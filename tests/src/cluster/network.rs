//! The addresses of a cluster with a node, and its one cable to the machine.
//!
//! ```text
//! machine 10.N.0.1 ──cable── 10.N.0.2 node (API 6443, DNS 53) ──┬── pods 10.N.128.0/17, one cable each
//!                                                               └── services 10.N.96.0/20, kube-proxy's rules
//! ```
//! One route on the machine, 10.N.0.0/16 by way of the node, makes node, pods and services reachable from it. `N` is between 64
//! and 127. The name of the cable holds `N`, and the kernel gives a name to one cable only: so no two clusters share addresses,
//! whoever starts them. Nothing leads from the pods to the world outside the machine.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::space::{Space, SpaceError};
use crate::run::{self, RunError};

const FIRST_NUMBER: u8 = 64;
const NUMBERS: u8 = 64;

/// Why the cluster has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every range is taken.
    #[error("all {NUMBERS} address ranges 10.64.0.0/16 to 10.127.0.0/16 are in use on this machine")]
    NoRange,
    /// A command that sets the network up.
    #[error(transparent)]
    Command(#[from] RunError),
    /// The namespaces could not be entered.
    #[error(transparent)]
    Space(#[from] SpaceError),
}

/// The addresses of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    number: u8,
}

impl Network {
    /// Lays the cable between the machine and `space`, in the first free range counted from one that the folder's name gives.
    pub(crate) fn connect(space: &Space, folder: &Path) -> Result<Self, NetworkError> {
        let network = candidates(folder).find_map(|network| network.claim(space).transpose());
        let network = network.unwrap_or(Err(NetworkError::NoRange))?;
        network.set_up_outside()?;
        space.enter(|| network.set_up_inside())??;
        Ok(network)
    }

    /// `None` if the range is in use.
    fn claim(self, space: &Space) -> Result<Option<Self>, NetworkError> {
        if !ip(&["-4", "route", "show", "root", &self.everything()])?.is_empty() {
            return Ok(None);
        }
        let holder = space.first().pid().to_string();
        let link = self.link();
        match ip(&["link", "add", &link, "type", "veth", "peer", "name", "uplink", "netns", &holder]) {
            Ok(_) => Ok(Some(self)),
            Err(RunError::Failed { said, .. }) if said.contains("File exists") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn set_up_outside(self) -> Result<(), RunError> {
        let link = self.link();
        ip(&["address", "add", &format!("{}/30", self.machine()), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        ip(&["route", "add", &self.everything(), "via", &self.node().to_string(), "dev", &link])?;
        Ok(())
    }

    fn set_up_inside(self) -> Result<(), RunError> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["address", "add", &format!("{}/30", self.node()), "dev", "uplink"])?;
        ip(&["link", "set", "uplink", "up"])?;
        // Without a route to them, packets to services would be refused before kube-proxy's rules see them.
        ip(&["route", "add", "default", "via", &self.machine().to_string()])?;
        Ok(())
    }

    /// Takes the cable away. It goes with the namespaces by itself, but some time later.
    pub(crate) fn disconnect(self) -> Result<(), RunError> {
        // The second is said where it goes between ip's look for it and the kernel's.
        let is_gone = |said: &str| ["Cannot find device", "No such device"].iter().any(|it| said.contains(it));
        match ip(&["link", "delete", &self.link()]) {
            Err(RunError::Failed { said, .. }) if is_gone(&said) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The name of the cable's end on the machine.
    pub(crate) fn link(self) -> String {
        format!("ortolan{}", self.number)
    }

    /// The machine as the cluster sees it.
    pub(crate) fn machine(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// The node, and the API.
    pub(crate) fn node(self) -> Ipv4Addr {
        self.address(0, 2)
    }

    /// The Service of the API.
    pub(crate) fn api_service(self) -> Ipv4Addr {
        self.address(96, 1)
    }

    /// The Service of the DNS server.
    pub(crate) fn dns_service(self) -> Ipv4Addr {
        self.address(96, 10)
    }

    pub(crate) fn services(self) -> String {
        format!("{}/20", self.address(96, 0))
    }

    pub(crate) fn pods(self) -> String {
        format!("{}/17", self.address(128, 0))
    }

    fn everything(self) -> String {
        format!("{}/16", self.address(0, 0))
    }

    fn address(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, third, fourth)
    }
}

fn candidates(folder: &Path) -> impl Iterator<Item = Network> {
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    let first = hasher.finish() % u64::from(NUMBERS);
    (0..NUMBERS).map(move |step| {
        let offset = (first + u64::from(step)) % u64::from(NUMBERS);
        Network { number: FIRST_NUMBER + u8::try_from(offset).unwrap_or_default() }
    })
}

fn ip(arguments: &[&str]) -> Result<String, RunError> {
    run::output(Command::new("ip").args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_tried_once() {
        let mut numbers: Vec<u8> = candidates(Path::new("/any")).map(|network| network.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (64..128).collect::<Vec<_>>());
    }
}
