//! What the operator's writer leaves alone, on a real API server.

use std::{collections::BTreeMap, sync::Arc};

use crds::resource::InferenceModel;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Client, ResourceExt as _,
    api::{Api, DeleteParams, Patch, PatchParams, PostParams},
};
use ortolan_operator::{
    apply::{ApplyError, Scale, Writer},
    leader::{Candidate, Leadership},
    names::SCALER_MANAGER,
};
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{LIMIT, Shared, installed, refusals::object};

/// A writer of an operator that leads for as long as the sender is there.
async fn writer(client: &Client) -> (Writer, watch::Sender<bool>) {
    let leadership = Leadership::default();
    let (stop, stopped) = watch::channel(false);
    let candidate = Candidate::new(client.clone(), "default", "writer", "the-test", leadership.clone());
    tokio::spawn(candidate.run(stopped));
    leadership.subscribe().wait_for(|leads| *leads).await.unwrap();
    (Writer::new(client.clone(), leadership, Arc::default()), stop)
}

fn status(message: &str) -> Value {
    json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "AllServes", "message": message,
        "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1,
    }]})
}

/// One who deletes an InferenceModel and makes it again would else see it ready before anything of it is there.
pub(crate) fn tells_no_other(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        let (writer, _leads) = writer(&client).await;
        let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
        let apply = || async {
            let object = object(&json!({"metadata": {"name": "phoenix"}}));
            models.patch("phoenix", &PatchParams::apply("test"), &Patch::Apply(&object)).await.unwrap()
        };
        let said = || async {
            let status = models.get("phoenix").await.unwrap().status.unwrap_or_default();
            status.conditions.first().map(|condition| condition.message.clone())
        };
        let former = apply().await;
        for message in ["it serves", "it still serves"] {
            writer.write_status(&former, &status(message)).await.unwrap();
            assert_eq!(said().await.as_deref(), Some(message));
        }
        models.delete("phoenix", &DeleteParams::default()).await.unwrap();
        writer.write_status(&former, &status("of one that is gone")).await.unwrap();
        let later = apply().await;
        assert_ne!(former.uid(), later.uid());
        writer.write_status(&former, &status("of another")).await.unwrap();
        assert_eq!(said().await, None);
        models.delete("phoenix", &DeleteParams::default()).await.unwrap();
    });
}

/// Nor would one that is made again have the replicas that the load of the former asked for, nor one of another number.
pub(crate) fn scales_no_other(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        let (writer, _leads) = writer(&client).await;
        let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
        let create = || async {
            let object = of_json(&object(&json!({"metadata": {"name": "twin"}})));
            models.create(&PostParams::default(), &object).await.unwrap()
        };
        let write = |model: &InferenceModel, from, to| {
            let (writer, uid) = (&writer, model.uid().unwrap());
            async move { writer.write_scale("default", "twin", &Scale { uid: &uid, from, to }).await.unwrap() }
        };
        let former = create().await;
        assert!(write(&former, 1, 3).await);
        let scaled = models.get("twin").await.unwrap();
        assert_eq!(scaled.spec.replicas, 3);
        let managers = scaled.metadata.managed_fields.unwrap_or_default();
        let scaler = managers.iter().find(|it| it.subresource.as_deref() == Some("scale")).unwrap();
        assert_eq!(scaler.manager.as_deref(), Some(SCALER_MANAGER));
        models.delete("twin", &DeleteParams::default()).await.unwrap();
        let later = create().await;
        assert!(!write(&former, 1, 4).await);
        assert_eq!(models.get("twin").await.unwrap().spec.replicas, later.spec.replicas);
        assert!(write(&later, 1, 2).await);
        assert_eq!(models.get("twin").await.unwrap().spec.replicas, 2);
        // Whoever writes in between wins, be it that none are wanted.
        for by_hand in [6, 0] {
            let spec = json!({"spec": {"replicas": by_hand}});
            models.patch("twin", &PatchParams::default(), &Patch::Merge(&spec)).await.unwrap();
            assert!(!write(&later, 2, 4).await, "over {by_hand}");
            assert_eq!(models.get("twin").await.unwrap().spec.replicas, by_hand);
        }
        models.delete("twin", &DeleteParams::default()).await.unwrap();
    });
}

/// Nothing can be made there, which is neither somebody's policy nor an error.
pub(crate) fn leaves_an_ending_namespace(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        let (writer, _leads) = writer(&client).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "ending");
        let create = PostParams::default();
        namespaces.create(&create, &of_json(&json!({"metadata": {"name": "ending"}}))).await.unwrap();
        let held = json!({"metadata": {"name": "held", "finalizers": ["ortolan.dev/test"]}});
        config_maps.create(&create, &of_json(&held)).await.unwrap();
        let write = || async {
            let wanted = of_json(&json!({"metadata": {"name": "wanted", "namespace": "ending"}}));
            writer.share::<ConfigMap>("ending", Some(wanted), &BTreeMap::new()).await
        };
        assert_eq!(write().await.unwrap().written, ["ConfigMap wanted"]);
        namespaces.delete("ending", &DeleteParams::default()).await.unwrap();
        gone(&config_maps, "wanted").await;
        assert!(matches!(write().await, Err(ApplyError::NamespaceEnds)));
        let free = json!({"metadata": {"finalizers": null}});
        config_maps.patch("held", &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
        gone(&namespaces, "ending").await;
        assert!(matches!(write().await, Err(ApplyError::NamespaceEnds)));
    });
}

async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let look = async || match api.get_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("it is there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until(&format!("{name} to go"), LIMIT, look).await.unwrap();
}

fn of_json<K: serde::de::DeserializeOwned>(value: &Value) -> K {
    serde_json::from_value(value.clone()).unwrap()
}
