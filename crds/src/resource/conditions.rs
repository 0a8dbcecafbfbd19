//! The conditions of an `InferenceModel` and their reasons: the closed sets that status, Events and docs share.

macro_rules! conditions {
    ($($(#[$of_condition:meta])* $module:ident $type:literal { $($(#[$of_reason:meta])* $reason:ident = $text:literal,)* })*) => {
        $(
            $(#[$of_condition])*
            pub mod $module {
                /// Type of the condition.
                pub const TYPE: &str = $type;
                $($(#[$of_reason])* pub const $reason: &str = $text;)*
                /// All of its reasons.
                pub const REASONS: &[&str] = &[$($reason),*];
            }
        )*

        /// Type and reasons of each condition that `Ready` sums up, in the order in which `Ready` copies the first
        /// that is False.
        pub const SUMMED_UP: &[(&str, &[&str])] = &[$(($module::TYPE, $module::REASONS)),*];
    };
}

conditions! {
    /// The spec can be acted on, and all that it names is there.
    accepted "Accepted" {
        /// Nothing speaks against it.
        ACCEPTED = "Accepted",
        /// A field asks for what the operator does not do yet.
        NOT_IMPLEMENTED = "NotImplemented",
        /// The server would refuse the settings that the spec makes for it.
        INVALID_OPTIONS = "InvalidOptions",
        /// The podTemplate cannot be merged, or sets what is not its to set.
        INVALID_OVERLAY = "InvalidOverlay",
        /// An object with a name that is needed belongs to somebody else.
        NAME_CONFLICT = "NameConflict",
        /// A Secret that the spec names is not there.
        SECRET_NOT_FOUND = "SecretNotFound",
        /// A PersistentVolumeClaim that the spec names is not there.
        PVC_NOT_FOUND = "PvcNotFound",
        /// The namespace's quota has no room for the pods.
        QUOTA_EXCEEDED = "QuotaExceeded",
        /// The API server refused a child.
        ADMISSION_DENIED = "AdmissionDenied",
    }

    /// The pods have nodes.
    scheduled "Scheduled" {
        /// Each pod has a node.
        SCHEDULED = "Scheduled",
        /// No node takes a pod.
        UNSCHEDULABLE = "Unschedulable",
        /// No node has a device left for a pod.
        INSUFFICIENT_GPU = "InsufficientGpu",
    }

    /// The models are fetched, checked and loaded.
    model_loaded "ModelLoaded" {
        /// Every model is loaded.
        LOADED = "Loaded",
        /// A pod waits for its volumes and images.
        PREPARING = "Preparing",
        /// A model is on its way into a pod.
        FETCHING = "Fetching",
        /// A server is loading a model.
        LOADING = "Loading",
        /// A node cannot get an image.
        IMAGE_PULL_FAILED = "ImagePullFailed",
        /// A source does not answer, or does not have the model.
        FETCH_FAILED = "FetchFailed",
        /// What was fetched has another sha256.
        CHECKSUM_MISMATCH = "ChecksumMismatch",
        /// A source refused the credentials.
        CREDENTIALS_DENIED = "CredentialsDenied",
        /// There is no room for a model.
        OUT_OF_DISK = "OutOfDisk",
        /// The server cannot load a model.
        INVALID_MODEL = "InvalidModel",
        /// A container was ended at its memory limit.
        OUT_OF_MEMORY = "OutOfMemory",
        /// A container ends again and again.
        CRASH_LOOPING = "CrashLooping",
        /// A model runs elsewhere than on the provider that was asked for.
        PROVIDER_FALLBACK = "ProviderFallback",
    }

    /// The pods are those of the current spec.
    rolled_out "RolledOut" {
        /// All pods are of the active revision.
        COMPLETE = "Complete",
        /// A new pod comes before an old one goes.
        SURGING = "Surging",
        /// A new pod waits for room.
        WAITING_FOR_CAPACITY = "WaitingForCapacity",
        /// An old pod goes before a new one comes.
        TERMINATING_FIRST = "TerminatingFirst",
        /// The new revision was not ready in time, and there is none to go back to.
        PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded",
        /// The new revision was not ready in time, and the one before it serves again.
        ROLLED_BACK = "RolledBack",
    }

    /// Predictions are answered, by whichever revision.
    available "Available" {
        /// Enough replicas are ready.
        MINIMUM_REPLICAS = "MinimumReplicas",
        /// No replica is ready.
        NO_REPLICA_READY = "NoReplicaReady",
        /// There are no replicas because the spec says suspend.
        SUSPENDED = "Suspended",
    }

    /// The number of replicas follows the load.
    scaling_active "ScalingActive" {
        /// It does.
        ACTIVE = "Active",
        /// Nobody scales, as the spec wants it.
        OFF = "Off",
        /// The numbers are missing or too old to be acted on.
        METRICS_STALE = "MetricsStale",
        /// More replicas are wanted than maxReplicas allows.
        LIMITED_BY_MAX = "LimitedByMax",
        /// Somebody else scales, as the spec wants it.
        EXTERNAL_OWNER = "ExternalOwner",
        /// Somebody else scales, although the spec does not want it.
        CONFLICTING_AUTOSCALER = "ConflictingAutoscaler",
        /// The cluster does not know the kind of the autoscaler that the spec wants.
        CRD_NOT_INSTALLED = "CrdNotInstalled",
    }

    /// The objects of monitoring tools are in place.
    monitoring_ready "MonitoringReady" {
        /// They are.
        CONFIGURED = "Configured",
        /// The cluster does not know their kind.
        CRD_NOT_INSTALLED = "CrdNotInstalled",
        /// No Prometheus selects them.
        NOT_SELECTED = "NotSelected",
    }
}

/// Sums up the others: all of the spec, at this generation, serves. Its reason is that of the first condition of
/// [`SUMMED_UP`] that is False.
pub const READY: &str = "Ready";

/// Reason of [`READY`] where nothing is False or Unknown.
pub const ALL_SERVES: &str = "AllServes";

/// Reason of a condition that is Unknown because no pod has come far enough to tell.
pub const PENDING: &str = "Pending";

/// Reason of [`RECONCILING`] while a child cannot be written and is tried again.
pub const APPLY_FAILED: &str = "ApplyFailed";

/// Reason of [`RECONCILING`] and [`STALLED`] where they are False.
pub const SETTLED: &str = "Settled";

/// As kstatus reads it: work on this generation, or on a repair, is under way. Never for scaling.
pub const RECONCILING: &str = "Reconciling";

/// As kstatus reads it: no progress without a change from outside.
pub const STALLED: &str = "Stalled";
