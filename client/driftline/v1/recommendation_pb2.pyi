from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServedFrom(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVED_FROM_UNSPECIFIED: _ClassVar[ServedFrom]
    SERVED_FROM_MODEL: _ClassVar[ServedFrom]
    SERVED_FROM_CACHE: _ClassVar[ServedFrom]
    SERVED_FROM_FALLBACK: _ClassVar[ServedFrom]

class SlateList(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLATE_LIST_UNSPECIFIED: _ClassVar[SlateList]
    SLATE_LIST_OVERALL: _ClassVar[SlateList]
    SLATE_LIST_NOVEL: _ClassVar[SlateList]
    SLATE_LIST_REPEAT: _ClassVar[SlateList]
SERVED_FROM_UNSPECIFIED: ServedFrom
SERVED_FROM_MODEL: ServedFrom
SERVED_FROM_CACHE: ServedFrom
SERVED_FROM_FALLBACK: ServedFrom
SLATE_LIST_UNSPECIFIED: SlateList
SLATE_LIST_OVERALL: SlateList
SLATE_LIST_NOVEL: SlateList
SLATE_LIST_REPEAT: SlateList

class Provenance(_message.Message):
    __slots__ = ("model_version", "model_sequence", "user_state_version", "watermark_ms", "served_from", "reasons", "request_time_ms", "profile_version", "model_watermark_ms", "pending_events", "model_pending_events")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    USER_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FROM_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    PENDING_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_PENDING_EVENTS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    model_sequence: int
    user_state_version: int
    watermark_ms: int
    served_from: ServedFrom
    reasons: _containers.RepeatedScalarFieldContainer[str]
    request_time_ms: int
    profile_version: int
    model_watermark_ms: int
    pending_events: int
    model_pending_events: int
    def __init__(self, model_version: _Optional[str] = ..., model_sequence: _Optional[int] = ..., user_state_version: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., served_from: _Optional[_Union[ServedFrom, str]] = ..., reasons: _Optional[_Iterable[str]] = ..., request_time_ms: _Optional[int] = ..., profile_version: _Optional[int] = ..., model_watermark_ms: _Optional[int] = ..., pending_events: _Optional[int] = ..., model_pending_events: _Optional[int] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("item_ids", "titles", "event_times_ms", "actions", "values", "prices", "action_weights", "group_keys")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    TITLES_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    ACTION_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    GROUP_KEYS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    titles: _containers.RepeatedScalarFieldContainer[str]
    event_times_ms: _containers.RepeatedScalarFieldContainer[int]
    actions: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[float]
    prices: _containers.RepeatedScalarFieldContainer[float]
    action_weights: _containers.RepeatedScalarFieldContainer[float]
    group_keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ..., titles: _Optional[_Iterable[str]] = ..., event_times_ms: _Optional[_Iterable[int]] = ..., actions: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[float]] = ..., prices: _Optional[_Iterable[float]] = ..., action_weights: _Optional[_Iterable[float]] = ..., group_keys: _Optional[_Iterable[int]] = ...) -> None: ...

class ProfileFacet(_message.Message):
    __slots__ = ("name", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("text", "facets", "source", "version", "valid_from_ms")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_MS_FIELD_NUMBER: _ClassVar[int]
    text: str
    facets: _containers.RepeatedCompositeFieldContainer[ProfileFacet]
    source: str
    version: int
    valid_from_ms: int
    def __init__(self, text: _Optional[str] = ..., facets: _Optional[_Iterable[_Union[ProfileFacet, _Mapping]]] = ..., source: _Optional[str] = ..., version: _Optional[int] = ..., valid_from_ms: _Optional[int] = ...) -> None: ...

class Freshness(_message.Message):
    __slots__ = ("last_event_ms", "event_age_ms", "partition", "store_offset", "watermark_ms", "state_age_ms")
    LAST_EVENT_MS_FIELD_NUMBER: _ClassVar[int]
    EVENT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    STORE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    STATE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    last_event_ms: int
    event_age_ms: int
    partition: int
    store_offset: int
    watermark_ms: int
    state_age_ms: int
    def __init__(self, last_event_ms: _Optional[int] = ..., event_age_ms: _Optional[int] = ..., partition: _Optional[int] = ..., store_offset: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., state_age_ms: _Optional[int] = ...) -> None: ...

class ActionCount(_message.Message):
    __slots__ = ("action", "action_code", "events")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_CODE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    action: str
    action_code: int
    events: int
    def __init__(self, action: _Optional[str] = ..., action_code: _Optional[int] = ..., events: _Optional[int] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("events", "too_late_events", "history_events", "first_event_ms", "actions")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TOO_LATE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_EVENT_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    events: int
    too_late_events: int
    history_events: int
    first_event_ms: int
    actions: _containers.RepeatedCompositeFieldContainer[ActionCount]
    def __init__(self, events: _Optional[int] = ..., too_late_events: _Optional[int] = ..., history_events: _Optional[int] = ..., first_event_ms: _Optional[int] = ..., actions: _Optional[_Iterable[_Union[ActionCount, _Mapping]]] = ...) -> None: ...

class UserState(_message.Message):
    __slots__ = ("user_id", "known", "history", "memory", "profile", "freshness", "counters", "domain")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    known: bool
    history: History
    memory: _containers.RepeatedScalarFieldContainer[float]
    profile: Profile
    freshness: Freshness
    counters: Counters
    domain: str
    def __init__(self, user_id: _Optional[str] = ..., known: _Optional[bool] = ..., history: _Optional[_Union[History, _Mapping]] = ..., memory: _Optional[_Iterable[float]] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., domain: _Optional[str] = ...) -> None: ...

class ItemReasons(_message.Message):
    __slots__ = ("reasons",)
    REASONS_FIELD_NUMBER: _ClassVar[int]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class Slate(_message.Message):
    __slots__ = ("item_ids", "scores", "titles", "item_reasons")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TITLES_FIELD_NUMBER: _ClassVar[int]
    ITEM_REASONS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    titles: _containers.RepeatedScalarFieldContainer[str]
    item_reasons: _containers.RepeatedCompositeFieldContainer[ItemReasons]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ..., titles: _Optional[_Iterable[str]] = ..., item_reasons: _Optional[_Iterable[_Union[ItemReasons, _Mapping]]] = ...) -> None: ...

class ItemFilter(_message.Message):
    __slots__ = ("categories", "excluded_categories", "brands", "excluded_brands", "domains", "min_price", "max_price")
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    BRANDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_BRANDS_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    MIN_PRICE_FIELD_NUMBER: _ClassVar[int]
    MAX_PRICE_FIELD_NUMBER: _ClassVar[int]
    categories: _containers.RepeatedScalarFieldContainer[str]
    excluded_categories: _containers.RepeatedScalarFieldContainer[str]
    brands: _containers.RepeatedScalarFieldContainer[str]
    excluded_brands: _containers.RepeatedScalarFieldContainer[str]
    domains: _containers.RepeatedScalarFieldContainer[str]
    min_price: float
    max_price: float
    def __init__(self, categories: _Optional[_Iterable[str]] = ..., excluded_categories: _Optional[_Iterable[str]] = ..., brands: _Optional[_Iterable[str]] = ..., excluded_brands: _Optional[_Iterable[str]] = ..., domains: _Optional[_Iterable[str]] = ..., min_price: _Optional[float] = ..., max_price: _Optional[float] = ...) -> None: ...

class SlateOptions(_message.Message):
    __slots__ = ("request_time_ms", "k", "list", "excluded_item_ids", "domain", "min_model_sequence", "omit_item_reasons", "min_user_state_version", "filter", "diversity", "context")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    MIN_MODEL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OMIT_ITEM_REASONS_FIELD_NUMBER: _ClassVar[int]
    MIN_USER_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    request_time_ms: int
    k: int
    list: SlateList
    excluded_item_ids: _containers.RepeatedScalarFieldContainer[str]
    domain: str
    min_model_sequence: int
    omit_item_reasons: bool
    min_user_state_version: int
    filter: ItemFilter
    diversity: float
    context: _containers.ScalarMap[str, str]
    def __init__(self, request_time_ms: _Optional[int] = ..., k: _Optional[int] = ..., list: _Optional[_Union[SlateList, str]] = ..., excluded_item_ids: _Optional[_Iterable[str]] = ..., domain: _Optional[str] = ..., min_model_sequence: _Optional[int] = ..., omit_item_reasons: _Optional[bool] = ..., min_user_state_version: _Optional[int] = ..., filter: _Optional[_Union[ItemFilter, _Mapping]] = ..., diversity: _Optional[float] = ..., context: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetUserStateRequest(_message.Message):
    __slots__ = ("user_id", "request_time_ms", "history_limit", "min_user_state_version")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MIN_USER_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    request_time_ms: int
    history_limit: int
    min_user_state_version: int
    def __init__(self, user_id: _Optional[str] = ..., request_time_ms: _Optional[int] = ..., history_limit: _Optional[int] = ..., min_user_state_version: _Optional[int] = ...) -> None: ...

class GetUserStateResponse(_message.Message):
    __slots__ = ("provenance", "user_state")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    USER_STATE_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    user_state: UserState
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., user_state: _Optional[_Union[UserState, _Mapping]] = ...) -> None: ...

class WatchUserStateRequest(_message.Message):
    __slots__ = ("user_id", "history_limit", "min_interval_ms", "min_user_state_version")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MIN_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_USER_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    history_limit: int
    min_interval_ms: int
    min_user_state_version: int
    def __init__(self, user_id: _Optional[str] = ..., history_limit: _Optional[int] = ..., min_interval_ms: _Optional[int] = ..., min_user_state_version: _Optional[int] = ...) -> None: ...

class WatchUserStateResponse(_message.Message):
    __slots__ = ("provenance", "user_state")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    USER_STATE_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    user_state: UserState
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., user_state: _Optional[_Union[UserState, _Mapping]] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "options")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    options: SlateOptions
    def __init__(self, user_id: _Optional[str] = ..., options: _Optional[_Union[SlateOptions, _Mapping]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("provenance", "slate")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SLATE_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    slate: Slate
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., slate: _Optional[_Union[Slate, _Mapping]] = ...) -> None: ...

class RecommendBatchRequest(_message.Message):
    __slots__ = ("user_ids", "options")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    options: SlateOptions
    def __init__(self, user_ids: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[SlateOptions, _Mapping]] = ...) -> None: ...

class UserSlate(_message.Message):
    __slots__ = ("user_id", "provenance", "slate")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SLATE_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    provenance: Provenance
    slate: Slate
    def __init__(self, user_id: _Optional[str] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., slate: _Optional[_Union[Slate, _Mapping]] = ...) -> None: ...

class RecommendBatchResponse(_message.Message):
    __slots__ = ("user_slates",)
    USER_SLATES_FIELD_NUMBER: _ClassVar[int]
    user_slates: _containers.RepeatedCompositeFieldContainer[UserSlate]
    def __init__(self, user_slates: _Optional[_Iterable[_Union[UserSlate, _Mapping]]] = ...) -> None: ...

class ScoreItemsRequest(_message.Message):
    __slots__ = ("user_id", "item_ids", "request_time_ms", "list", "min_model_sequence", "min_user_state_version", "context")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    MIN_MODEL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_USER_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    request_time_ms: int
    list: SlateList
    min_model_sequence: int
    min_user_state_version: int
    context: _containers.ScalarMap[str, str]
    def __init__(self, user_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., request_time_ms: _Optional[int] = ..., list: _Optional[_Union[SlateList, str]] = ..., min_model_sequence: _Optional[int] = ..., min_user_state_version: _Optional[int] = ..., context: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ScoreItemsResponse(_message.Message):
    __slots__ = ("provenance", "scores", "unknown_item_ids")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    scores: _containers.RepeatedScalarFieldContainer[float]
    unknown_item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., unknown_item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SimilarItemsRequest(_message.Message):
    __slots__ = ("item_id", "k", "excluded_item_ids", "domain", "min_model_sequence", "filter", "diversity")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    MIN_MODEL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    k: int
    excluded_item_ids: _containers.RepeatedScalarFieldContainer[str]
    domain: str
    min_model_sequence: int
    filter: ItemFilter
    diversity: float
    def __init__(self, item_id: _Optional[str] = ..., k: _Optional[int] = ..., excluded_item_ids: _Optional[_Iterable[str]] = ..., domain: _Optional[str] = ..., min_model_sequence: _Optional[int] = ..., filter: _Optional[_Union[ItemFilter, _Mapping]] = ..., diversity: _Optional[float] = ...) -> None: ...

class SimilarItemsResponse(_message.Message):
    __slots__ = ("provenance", "slate")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SLATE_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    slate: Slate
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., slate: _Optional[_Union[Slate, _Mapping]] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelMetric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class SourceOffset(_message.Message):
    __slots__ = ("topic", "partition", "offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("model_version", "model_sequence", "created_ms")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    model_sequence: int
    created_ms: int
    def __init__(self, model_version: _Optional[str] = ..., model_sequence: _Optional[int] = ..., created_ms: _Optional[int] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("provenance", "created_ms", "adopted_ms", "items", "metrics", "source_offsets", "git_revision", "config_sha256", "available_versions", "refused_reason", "held")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    GIT_REVISION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REASON_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    created_ms: int
    adopted_ms: int
    items: int
    metrics: _containers.RepeatedCompositeFieldContainer[ModelMetric]
    source_offsets: _containers.RepeatedCompositeFieldContainer[SourceOffset]
    git_revision: str
    config_sha256: str
    available_versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    refused_reason: str
    held: bool
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., created_ms: _Optional[int] = ..., adopted_ms: _Optional[int] = ..., items: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[ModelMetric, _Mapping]]] = ..., source_offsets: _Optional[_Iterable[_Union[SourceOffset, _Mapping]]] = ..., git_revision: _Optional[str] = ..., config_sha256: _Optional[str] = ..., available_versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., refused_reason: _Optional[str] = ..., held: _Optional[bool] = ...) -> None: ...

class ForgetUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class ForgetUserResponse(_message.Message):
    __slots__ = ("partition", "offset")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...
