//! The file shares of the storage account: folders that outlive sites.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    request::{self, Request},
    stand::{REGION, Stand, locked},
    words,
};

/// The quota of a share that names none, and the highest one.
const QUOTA: u64 = 5120;
const QUOTA_MAX: u64 = 102_400;

/// A share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) name: String,
    /// In gibibytes.
    pub(crate) quota: u64,
    pub(crate) metadata: BTreeMap<String, String>,
    changed: String,
}

impl Share {
    /// Takes over what a body says. What it does not name stays as it is.
    fn merge(&mut self, body: &Value) -> Result<(), Refusal> {
        let properties = &body["properties"];
        if !properties["shareQuota"].is_null() {
            let quota = properties["shareQuota"].as_u64().filter(|quota| (1..=QUOTA_MAX).contains(quota));
            self.quota = quota.ok_or_else(|| {
                let message = "The value for one of the properties in the request is out of range: shareQuota.";
                Refusal::new(400, "OutOfRangeInput", message)
            })?;
        }
        let invalid = |message: String| Refusal::new(400, "InvalidMetadata", message);
        let metadata =
            request::strings(&properties["metadata"]).map_err(|()| invalid("Metadata is text.".to_owned()))?;
        if let Some(metadata) = metadata {
            // They become headers, and names in C#. <https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-shares--directories--files--and-metadata>
            let is_name = |name: &str| {
                name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            if let Some(name) = metadata.keys().find(|name| !is_name(name)) {
                return Err(invalid(format!(
                    "The metadata specified is invalid. It has characters that are not permitted: {name}"
                )));
            }
            if let Some((name, _)) =
                metadata.iter().find(|(_, value)| !value.is_ascii() || value.contains(char::is_control))
            {
                return Err(invalid(format!(
                    "The value of the metadata {name} has characters that are not permitted."
                )));
            }
            self.metadata = metadata;
        }
        self.changed = words::now();
        Ok(())
    }
}

impl Stand {
    pub(crate) fn share_folder(&self, share: &str) -> PathBuf {
        self.folder.join("shares").join(share)
    }

    /// The accounts that there are: one.
    fn check_account(&self, request: &Request) -> Result<(), Refusal> {
        let name = request.name();
        match name.eq_ignore_ascii_case(&self.account) {
            true => Ok(()),
            false => Err(Refusal::no_resource(&format!("Microsoft.Storage/storageAccounts/{name}"), &self.group)),
        }
    }

    /// One that exists stays as it is.
    pub(crate) fn create_share(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let name = request.second_name();
        let is_name = (3..=63).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        if !is_name {
            let message = "The specified resource name contains invalid characters, or its length is not within the permissible limits.";
            return Err(Refusal::new(400, "InvalidResourceName", message));
        }
        let mut world = locked(&self.world);
        if let Some(share) = world.shares.get(name) {
            return Ok(Answer::ok(self.show_share(share)));
        }
        let mut share =
            Share { name: name.to_owned(), quota: QUOTA, metadata: BTreeMap::new(), changed: String::new() };
        share.merge(&request.body)?;
        fs::create_dir_all(self.share_folder(name)).map_err(failed)?;
        world.shares.put(name, share.clone());
        Ok(Answer::new(201, Some(self.show_share(&share))))
    }

    pub(crate) fn update_share(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let name = request.second_name();
        let mut world = locked(&self.world);
        let mut share = world.shares.get(name).cloned().ok_or_else(no_share)?;
        share.merge(&request.body)?;
        world.shares.put(name, share.clone());
        Ok(Answer::ok(self.show_share(&share)))
    }

    pub(crate) fn get_share(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let world = locked(&self.world);
        let share = world.shares.shown(request.second_name()).ok_or_else(no_share)?;
        Ok(Answer::ok(self.show_share(share)))
    }

    pub(crate) fn list_shares(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let world = locked(&self.world);
        // What is noted of a share is told by itself alone: <https://github.com/Azure/azure-sdk-for-net/issues/17717>.
        let listed = |share: &Share| {
            let mut listed = self.show_share(share);
            if let Some(properties) = listed["properties"].as_object_mut() {
                properties.remove("metadata");
            }
            listed
        };
        let shares = world.shares.shown_all().into_iter().map(listed).collect();
        Ok(self.page(request, shares))
    }

    /// Whoever has it mounted loses it.
    pub(crate) fn delete_share(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let name = request.second_name();
        self.check_kept("Microsoft.Storage/storageAccounts/fileServices/shares", name)?;
        match self.remove_share(name)? {
            true => Ok(Answer::empty(200)),
            false => Ok(Answer::empty(204)),
        }
    }

    /// Whether there was one.
    pub(crate) fn remove_share(&self, name: &str) -> Result<bool, Refusal> {
        let mut world = locked(&self.world);
        if world.shares.remove(name).is_none() {
            return Ok(false);
        }
        let folder = self.share_folder(name);
        // A product may write to it at this very moment.
        let removed = (0..10).find_map(|_| fs::remove_dir_all(&folder).ok());
        match removed {
            Some(()) => Ok(true),
            None => fs::remove_dir_all(&folder).map_err(failed).map(|()| true),
        }
    }

    pub(crate) fn list_keys(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        let show = |(at, key): (usize, &String)| json!({ "keyName": format!("key{}", at + 1), "value": key, "permissions": "FULL", "creationTime": "2024-01-01T00:00:00.000Z" });
        let keys: Vec<_> = self.keys.iter().enumerate().map(show).collect();
        Ok(Answer::ok(json!({ "keys": keys })))
    }

    pub(crate) fn get_account(&self, request: &Request) -> Result<Answer, Refusal> {
        self.check_account(request)?;
        Ok(Answer::ok(json!({
            "id": self.id("Microsoft.Storage/storageAccounts", &self.account),
            "name": self.account,
            "type": "Microsoft.Storage/storageAccounts",
            "kind": "StorageV2",
            "location": REGION,
            "tags": {},
            "sku": { "name": "Standard_LRS", "tier": "Standard" },
            "properties": { "provisioningState": "Succeeded", "supportsHttpsTrafficOnly": true },
        })))
    }

    pub(crate) fn show_share(&self, share: &Share) -> Value {
        let account = self.id("Microsoft.Storage/storageAccounts", &self.account);
        json!({
            "id": format!("{account}/fileServices/default/shares/{}", share.name),
            "name": share.name,
            "type": "Microsoft.Storage/storageAccounts/fileServices/shares",
            "etag": format!("\"0x{}\"", words::fingerprint(&format!("{}{}", share.name, share.changed), 15)),
            "properties": {
                "shareQuota": share.quota,
                "metadata": share.metadata,
                "lastModifiedTime": share.changed,
                "accessTier": "TransactionOptimized",
                "enabledProtocols": "SMB",
                "leaseState": "available",
                "leaseStatus": "unlocked",
            },
        })
    }
}

fn no_share() -> Refusal {
    Refusal::new(404, "ShareNotFound", "The specified share does not exist.")
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: std::io::Error) -> Refusal {
    Refusal::new(500, "InternalError", error.to_string())
}
