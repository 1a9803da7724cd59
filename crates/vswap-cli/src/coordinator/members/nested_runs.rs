//! What nested runs ask of the coordinator, see `coordinator::nested`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::{Connection, Members, Stage, is_dead, send};
use crate::coordinator::nested::{Answer, Ask, packet};
use crate::coordinator::swap::HandedOver;
use crate::refusal::Refusal;
use crate::stats::SwapSpace;

impl Members {
    /// Answers a nested run; false if the connection is to be closed.
    pub(super) fn hear_nested(&mut self, index: usize, bytes: &[u8], fd: Option<OwnedFd>) -> bool {
        let Ok(ask) = serde_json::from_slice(bytes) else { return false };
        let stage = &self.connections[index].stage;
        let answer = match (stage, ask, fd) {
            (Stage::Stranger, Ask::Join(join), _) => {
                let pid = self.connections[index].pid.as_raw_nonzero().get() as u32;
                let added = self.groups.add(join.parent(), (join.name.clone(), pid), join.limits());
                if let Ok(token) = added {
                    self.connections[index].stage = Stage::Nested { token, asks_account: false };
                }
                added.map(Answer::Joined)
            }
            (&Stage::Nested { token, .. }, Ask::Swap(device), Some(file)) => {
                self.adopt_device(token, device, file)
            }
            (&Stage::Nested { token, .. }, Ask::Tiers(tiers), _) => {
                let group = self.groups.index_of(token);
                self.devices.restrict(group, &tiers).map(|()| Answer::Restricted)
            }
            (&Stage::Nested { token, .. }, Ask::Started(started), _) => {
                let index = self.groups.index_of(token);
                let name = self.groups.get(index).map(|group| group.name.clone());
                if let Some(about) = name.and_then(|name| started.about(name)) {
                    self.groups.note_started(token, about);
                }
                return true;
            }
            (&Stage::Nested { token, .. }, Ask::Account, _) => {
                let asks_account = true;
                self.connections[index].stage = Stage::Nested { token, asks_account };
                return true;
            }
            _ => return false,
        };
        let answer = answer.unwrap_or_else(|refusal| {
            let (what, remedy) = refusal.parts();
            Answer::Refused { what: what.to_owned(), remedy: remedy.to_owned() }
        });
        // One that is gone is found at its end of file.
        let _ = send(&self.connections[index].socket, &packet(&answer), &[]);
        true
    }

    fn adopt_device(
        &mut self,
        token: u32,
        device: HandedOver,
        file: OwnedFd,
    ) -> Result<Answer, Refusal> {
        let group = self.groups.index_of(token);
        self.devices.adopt(device, file, group).map(|_| Answer::Swapped)
    }

    /// Gives nested runs the accounts that they wait for, and removes groups that nobody needs.
    pub(super) fn look_after_groups(&mut self) {
        for index in 0..self.connections.len() {
            if let Stage::Nested { token, asks_account: true } = self.connections[index].stage
                && !self.has_unsettled(token)
            {
                self.give_account(index, token);
            }
        }
        let left = self.groups.iter().filter(|group| group.is_left(self.page));
        let devices: Vec<usize> = left
            .flat_map(|group| self.devices.devices_of(group.index))
            .map(|device| device.number)
            .filter(|&device| self.has_left(device))
            .collect();
        for device in devices {
            self.devices.remove(device);
        }
        let (page, devices) = (self.page, &self.devices);
        self.groups.sweep(|group| {
            page.members_within(group).next().is_none()
                && devices.devices_of(group).next().is_none()
        });
        self.devices.forget_masks();
    }

    /// Whether a process of the group has ended whose pager has not said its last.
    fn has_unsettled(&self, token: u32) -> bool {
        let group = self.groups.index_of(token);
        let is_of_group = |connection: &&Connection| match connection.stage {
            Stage::Member { index, .. } => {
                self.groups.tree().is_within(self.page.members[index].group(), group)
            }
            _ => false,
        };
        let mut members = self.connections.iter().filter(is_of_group);
        members.any(|member| is_dead(&member.pidfd, Duration::ZERO))
    }

    fn give_account(&mut self, index: usize, token: u32) {
        let group = self.groups.index_of(token);
        let totals = self.groups.totals(group);
        let pagers = self.groups.get(group).map_or(0, |group| group.joined);
        let swap = SwapSpace::of(self.page, group);
        let answer = packet(&Answer::Account { totals, pagers, swap });
        let _ = send(&self.connections[index].socket, &answer, &[]);
        self.connections[index].stage = Stage::Nested { token, asks_account: false };
    }
}
