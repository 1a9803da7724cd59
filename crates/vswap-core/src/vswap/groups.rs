//! Groups, as clients see them.

use super::VirtualSwap;
use crate::entry::GroupId;
use crate::error::GroupError;
use crate::group::{GroupLimits, GroupUsage};
use crate::platform::Platform;

impl<P: Platform> VirtualSwap<P> {
    /// Makes a group below another.
    ///
    /// # Errors
    /// If the parent does not exist, there are too many groups, or no memory for their table.
    pub fn create_group(
        &self,
        parent: GroupId,
        limits: GroupLimits,
    ) -> Result<GroupId, GroupError> {
        self.groups.create(self.platform(), parent, limits)
    }

    /// Removes a group that has neither entries nor children.
    ///
    /// # Errors
    /// If it has, or does not exist.
    pub fn remove_group(&self, group: GroupId) -> Result<(), GroupError> {
        self.groups.remove(self.platform(), group)
    }

    /// Changes a group's limits. What is stored beyond them stays; new stores go elsewhere.
    ///
    /// # Errors
    /// If there is no such group; the root has no limits.
    pub fn set_group_limits(&self, group: GroupId, limits: GroupLimits) -> Result<(), GroupError> {
        self.groups.set_limits(group, limits)
    }

    /// What a group uses; `None` for the root and for groups that do not exist.
    pub fn group_usage(&self, group: GroupId) -> Option<GroupUsage> {
        self.groups.usage(group)
    }
}
