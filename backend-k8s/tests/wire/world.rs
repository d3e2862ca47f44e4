//! What the scripted cluster holds: objects with versions, the events that watches tell of, and just enough of the controllers
//! that an instance gets its pod and loses it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The plural of a kind, a namespace or nothing, and a name.
pub(crate) type Key = (String, String, String);

/// A change that watches tell of.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) version: u64,
    pub(crate) plural: String,
    pub(crate) kind: &'static str,
    pub(crate) object: Value,
    /// What it was.
    pub(crate) before: Option<Value>,
}

/// A refusal: the code, the reason and the message.
pub(crate) type Refusal = (u16, &'static str, String);

/// Everything that there is.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) objects: BTreeMap<Key, Value>,
    pub(crate) version: u64,
    pub(crate) events: Vec<Event>,
    /// What is older than this is not told any more.
    pub(crate) compacted: u64,
    /// Watches tell nothing newer than this.
    pub(crate) told_until: Option<u64>,
    /// Nobody makes pods, or tells of sets.
    pub(crate) is_uncontrolled: bool,
    /// No list has more in one answer.
    pub(crate) page_max: Option<usize>,
    uids: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self::default();
        world.put(&key("namespaces", "", "kube-system"), json!({"metadata": {"name": "kube-system"}}));
        world
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&key(plural, namespace, name))
    }

    /// The objects of a kind, in one namespace or in all, that have these labels.
    pub(crate) fn list(&self, plural: &str, namespace: Option<&str>, selector: &str) -> Vec<Value> {
        let of_kind = self
            .objects
            .iter()
            .filter(|((kind, home, _), _)| kind == plural && namespace.is_none_or(|namespace| namespace == home));
        of_kind.filter(|(_, object)| has_labels(object, selector)).map(|(_, object)| object.clone()).collect()
    }

    /// A page of that: so many at most, from this one on.
    pub(crate) fn page(&self, mut all: Vec<Value>, limit: Option<usize>, from: usize) -> Value {
        let limit = limit.into_iter().chain(self.page_max).min().unwrap_or(usize::MAX);
        let rest = all.split_off(from.min(all.len()));
        let next = if rest.len() > limit { (from + limit).to_string() } else { String::new() };
        let items: Vec<_> = rest.into_iter().take(limit).collect();
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": next});
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
    }

    pub(crate) fn create(&mut self, key: &Key, object: Value) -> Result<Value, Refusal> {
        if self.objects.contains_key(key) {
            return Err((409, "AlreadyExists", format!("{} \"{}\" already exists", key.0, key.2)));
        }
        if !key.1.is_empty() && self.get("namespaces", "", &key.1).is_none() {
            return Err((404, "NotFound", format!("namespaces \"{}\" not found", key.1)));
        }
        Ok(self.put(key, object))
    }

    /// As a server-side apply by one manager that owns everything.
    pub(crate) fn apply(&mut self, key: &Key, object: Value) -> Result<Value, Refusal> {
        let version = &object["metadata"]["resourceVersion"];
        match self.objects.get(key) {
            None if object["metadata"]["uid"].is_string() => {
                Err((409, "Conflict", "uid mismatch: no existing object was found".to_owned()))
            }
            // As most kinds do, also where a version was named.
            None => self.create(key, object),
            Some(before) if version.is_string() && *version != before["metadata"]["resourceVersion"] => {
                Err((409, "Conflict", "the object has been modified".to_owned()))
            }
            Some(before) => {
                // The ports of a service are a list that others may add to.
                let mut object = object;
                if key.0 == "services" {
                    let added = before["spec"]["ports"].as_array().into_iter().flatten();
                    let ours = object["spec"]["ports"].as_array().cloned().unwrap_or_default();
                    let added: Vec<_> =
                        added.filter(|port| ours.iter().all(|own| own["port"] != port["port"])).collect();
                    object["spec"]["ports"] = ours.iter().chain(added).cloned().collect();
                }
                Ok(self.put(key, object))
            }
        }
    }

    pub(crate) fn patch(&mut self, key: &Key, patch: &Value) -> Result<Value, Refusal> {
        let Some(object) = self.objects.get(key) else { return Err(not_found(key)) };
        let mut object = object.clone();
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).expect("a JSON patch");
        if json_patch::patch(&mut object, &patch).is_err() {
            let message = "the server rejected our request due to an error in our request";
            return Err((422, "Invalid", message.to_owned()));
        }
        Ok(self.put(key, object))
    }

    /// Refuses unless the object is at this version, if one is named.
    pub(crate) fn expect_version(&self, key: &Key, version: Option<&str>) -> Result<(), Refusal> {
        let found = self.objects.get(key).map(|object| &object["metadata"]["resourceVersion"]);
        if version.is_some_and(|version| found.is_some_and(|found| found != version)) {
            return Err((409, "Conflict", "the object has been modified".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: &Key, uid: Option<&str>) -> Result<(), Refusal> {
        let Some(object) = self.objects.get(key) else { return Err(not_found(key)) };
        if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Err((409, "Conflict", "the uid in the precondition is another one".to_owned()));
        }
        self.take_with_all(key);
        self.control();
        Ok(())
    }

    /// As the cluster's own collector does it: what belongs to an object goes with it, unless it belongs to another one, too.
    fn take_with_all(&mut self, key: &Key) {
        if !self.objects.contains_key(key) {
            return;
        }
        self.take(key);
        let mut left = self.disowned();
        match key.0.as_str() {
            "namespaces" => left.extend(self.objects.keys().filter(|(_, home, _)| *home == key.2).cloned()),
            "statefulsets" => left.push(pod_of(key)),
            "services" => left.push(slice_of(key)),
            _ => {}
        }
        for key in left {
            self.take_with_all(&key);
        }
    }

    /// What belongs to nothing that is there any more.
    fn disowned(&self) -> Vec<Key> {
        let lives = |owner: &Value| self.objects.values().any(|object| object["metadata"]["uid"] == owner["uid"]);
        let is_left = |object: &Value| {
            object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.iter().any(lives))
        };
        self.objects.iter().filter(|(_, object)| is_left(object)).map(|(key, _)| key.clone()).collect()
    }

    /// Takes an object away, and leaves what belongs to it.
    pub(crate) fn orphan(&mut self, key: &Key) {
        self.take(key);
        self.control();
    }

    /// Changes an object as anybody might, and what follows from that.
    pub(crate) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        let mut object = self.objects.get(key).expect("it is there").clone();
        change(&mut object);
        self.put(key, object);
    }

    fn put(&mut self, key: &Key, object: Value) -> Value {
        self.write(key, object);
        self.control();
        self.objects[key].clone()
    }

    fn write(&mut self, key: &Key, mut object: Value) {
        let before = self.objects.get(key);
        let metadata = &mut object["metadata"];
        for kept in ["uid", "resourceVersion", "generation"] {
            if let Some(before) = before {
                metadata[kept] = before["metadata"][kept].clone();
            }
        }
        if let Some(before) = before {
            if object.get("status").is_none()
                && let Some(status) = before.get("status")
            {
                object["status"] = status.clone();
            }
            if object == *before {
                return;
            }
        }
        let is_new_spec = before.is_none_or(|before| before["spec"] != object["spec"]);
        let generation = before.and_then(|before| before["metadata"]["generation"].as_u64()).unwrap_or_default();
        self.version += 1;
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        if before.is_none() {
            self.uids += 1;
            object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        }
        object["metadata"]["generation"] = json!(generation + u64::from(is_new_spec));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        self.tell(key, kind, &object);
        self.objects.insert(key.clone(), object);
    }

    fn take(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(key, "DELETED", &object);
    }

    fn tell(&mut self, key: &Key, kind: &'static str, object: &Value) {
        let (before, object) = (self.objects.get(key).cloned(), object.clone());
        self.events.push(Event { version: self.version, plural: key.0.clone(), kind, object, before });
    }

    /// What the controllers, the scheduler and the kubelet would do by and by.
    fn control(&mut self) {
        for key in self.disowned() {
            self.take_with_all(&key);
        }
        let claims = self.objects.keys().filter(|key| key.0 == "persistentvolumeclaims").cloned();
        for claim in claims.collect::<Vec<_>>() {
            let mut object = self.objects[&claim].clone();
            if object["status"].is_null() {
                object["status"] = json!({"phase": "Bound"});
            }
            self.write(&claim, object);
        }
        let quotas = self.objects.keys().filter(|key| key.0 == "resourcequotas").cloned();
        for quota in quotas.collect::<Vec<_>>() {
            let mut object = self.objects[&quota].clone();
            object["status"]["hard"] = object["spec"]["hard"].clone();
            self.write(&quota, object);
        }
        let sets = self.objects.keys().filter(|key| key.0 == "statefulsets").cloned();
        for set in sets.collect::<Vec<_>>() {
            self.control_set(&set);
        }
        let services = self.objects.keys().filter(|key| key.0 == "services").cloned();
        for service in services.collect::<Vec<_>>() {
            self.control_service(&service);
        }
    }

    /// Which ready pods a service leads to.
    fn control_service(&mut self, service: &Key) {
        let selector = self.objects[service]["spec"]["selector"].as_object().cloned().unwrap_or_default();
        let pods = self.objects.iter().filter(|((plural, home, _), pod)| {
            let labels = &pod["metadata"]["labels"];
            plural == "pods"
                && *home == service.1
                && selector.iter().all(|(label, value)| labels[label] == *value)
                && pod["status"]["conditions"]
                    .as_array()
                    .is_some_and(|conditions| conditions.contains(&json!({"type": "Ready", "status": "True"})))
        });
        let endpoint =
            |pod: &Value| json!({"conditions": {"ready": true}, "targetRef": {"uid": pod["metadata"]["uid"]}});
        let endpoints: Vec<Value> = pods.map(|(_, pod)| endpoint(pod)).collect();
        let (slice, labels) = (slice_of(service), self.objects[service]["metadata"]["labels"].clone());
        self.write(&slice, json!({"metadata": {"name": slice.2, "labels": labels}, "endpoints": endpoints}));
    }

    fn control_set(&mut self, set: &Key) {
        if self.is_uncontrolled {
            return;
        }
        let mut object = self.objects[set].clone();
        let template = object["spec"]["template"].clone();
        let revision = format!("{}-{:x}", set.2, fingerprint(&template.to_string()));
        object["status"] =
            json!({"observedGeneration": object["metadata"]["generation"], "updateRevision": revision, "replicas": 0});
        self.write(set, object.clone());
        let pod = pod_of(set);
        let is_there = self.objects.get(&pod).map(|pod| &pod["metadata"]["labels"]["controller-revision-hash"]);
        let is_wanted = object["spec"]["replicas"] == 1;
        match is_there {
            Some(hash) if is_wanted && *hash == revision => return,
            Some(_) => self.take(&pod),
            None => {}
        }
        if is_wanted {
            let mut labels = template["metadata"]["labels"].clone();
            labels["controller-revision-hash"] = json!(revision);
            let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            self.write(&pod, json!({"metadata": {"name": pod.2, "labels": labels}, "status": status}));
        }
    }
}

pub(crate) fn key(plural: &str, namespace: &str, name: &str) -> Key {
    (plural.to_owned(), namespace.to_owned(), name.to_owned())
}

fn pod_of(set: &Key) -> Key {
    key("pods", &set.1, &format!("{}-0", set.2))
}

fn slice_of(service: &Key) -> Key {
    key("endpointslices", &service.1, &format!("{}-slice", service.2))
}

fn not_found(key: &Key) -> Refusal {
    (404, "NotFound", format!("{} \"{}\" not found", key.0, key.2))
}

fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether an object has all labels of a selector of the form `a=b,c!=d`.
pub(crate) fn has_labels(object: &Value, selector: &str) -> bool {
    selector.split(',').filter_map(|pair| pair.split_once('=')).all(|(label, value)| match label.strip_suffix('!') {
        Some(label) => object["metadata"]["labels"][label] != value,
        None => object["metadata"]["labels"][label] == value,
    })
}
