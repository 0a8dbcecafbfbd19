//! While nothing changes, nothing is written.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::json;

use crate::audit::Mark;
use crate::fixture::{Outcome, tell};
use crate::models::{small, with};
use crate::space::{Space, no};

/// As the issue asks: a minute.
const REST: Duration = Duration::from_secs(60);

pub(crate) async fn nothing_is_written(space: &Space) -> Outcome {
    space.claim_models().await?;
    let service =
        json!({"metadata": {"name": "taken"}, "spec": {"selector": {"app": "foreign"}, "ports": [{"port": 80}]}});
    space.create_object::<k8s_openapi::api::core::v1::Service>(service).await?;
    space.apply(&with(small("ahead"), &json!({"availability": {"pdb": "Enabled"}}))).await?;
    space.apply(&small("taken")).await?;
    space.apply(&with(small("idle"), &json!({"suspend": true}))).await?;
    // Values that the API server writes in another way than people do.
    let resources = json!({"requests": {"cpu": "0.05", "memory": "65536Ki"}, "limits": {"memory": "0.25Gi"}});
    space.apply_until_ready(&with(small("odd"), &json!({"resources": resources}))).await?;
    space.apply_until_ready(&with(small("plain"), &json!({"replicas": 2}))).await?;
    space.shows("ahead", no("Accepted", "NotImplemented")).await?;
    space.shows("taken", no("Accepted", "NameConflict")).await?;
    space.shows("idle", no("Available", "Suspended")).await?;
    // What pods tell of themselves is asked for once they are ready.
    for name in ["odd", "plain"] {
        let told = |model: &crds::resource::InferenceModel| {
            let told = model.status.iter().flat_map(|status| &status.models).all(|model| model.provider.is_some());
            if told { Ok(()) } else { Err("it has not told".to_owned()) }
        };
        space.until(name, "to tell what serves", told).await?;
    }
    space
        .until("taken", "to have its pod, whatever its Service", |model| {
            let ready = model.status.as_ref().map(|status| status.ready_replicas);
            if ready == Some(1) { Ok(()) } else { Err(format!("{ready:?} pods")) }
        })
        .await?;
    // 2 s: what was decided just now is written.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let before = versions(space).await?;
    let mark = Mark::now(space.cluster())?;
    tokio::time::sleep(REST).await;
    let writes = mark.writes_in(&space.namespace)?;
    let leases = mark.all()?.iter().filter(|write| write.resource == "leases").count();
    tell(&format!("in {} s: {} writes, and {leases} of the Lease", REST.as_secs(), writes.len()));
    assert_eq!(writes, []);
    assert!(leases > 10, "the audit log shows no renewals: {leases}");
    assert_eq!(versions(space).await?, before);
    Ok(())
}

/// The InferenceModels as they are stored.
async fn versions(space: &Space) -> Outcome<Vec<(String, Option<String>)>> {
    let models = space.models().list(&Default::default()).await?;
    Ok(models.items.iter().map(|model| (model.name_any(), model.resource_version())).collect())
}
