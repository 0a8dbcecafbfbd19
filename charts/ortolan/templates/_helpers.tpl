{{- /* The name of all that belongs to the operator. Releases may have dots and begin with a digit, which Services may not. */ -}}
{{- define "ortolan.name" -}}
{{ regexReplaceAll "^([0-9])" (.Release.Name | replace "." "-") "ortolan-${1}" | trunc 44 | trimSuffix "-" }}-operator
{{- end }}

{{- define "ortolan.selector" -}}
app.kubernetes.io/name: ortolan
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "ortolan.labels" -}}
{{ include "ortolan.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- /* A version may have a part after a +, which no label may. */}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | trimSuffix "_" | quote }}
{{- end }}

{{- define "ortolan.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "ortolan.name" .) }}
{{- else -}}
{{ required "serviceAccount.name is needed where serviceAccount.create is false: it names the account that is there" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* An image's full name, of its values and the tag that stands for an empty one. */ -}}
{{- define "ortolan.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end }}
{{- end }}

{{- /*
What the operator may do with objects of a namespace: in a ClusterRole for all namespaces, in a Role for one. It applies
its children on the server, which takes patch, and create where they are not there yet; it reads them through its watches.
Secrets, nodes and roles are not here and never will be.
*/ -}}
{{- define "ortolan.rules" -}}
- apiGroups: [ortolan.dev]
  resources: [inferencemodels]
  verbs: [list, watch]
- apiGroups: [ortolan.dev]
  resources: [inferencemodels/status, inferencemodels/scale]
  verbs: [patch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch, create, patch, delete]
# KEDA's; in a cluster without it this permits nothing.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [list, watch, create, patch, delete]
# Both kinds are the Prometheus Operator's; in a cluster without it these permit nothing.
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors, prometheusrules]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Those of a stuck pod, which tell why it is stuck.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
