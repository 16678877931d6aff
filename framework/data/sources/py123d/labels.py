"""The classes of boxes in 123D: each dataset numbers its own, in the order of an enumeration of py123d 0.7."""

from __future__ import annotations

NUMBERED = {
    "DefaultBoxDetectionLabel": (
        "ego vehicle train two_wheeler person animal traffic_sign traffic_cone traffic_light barrier generic_object "
        "other"
    ),
    "AV2SensorBoxDetectionLabel": (
        "animal articulated_bus bicycle bicyclist bollard box_truck bus construction_barrel construction_cone dog "
        "large_vehicle message_board_trailer mobile_pedestrian_crossing_sign motorcycle motorcyclist official_signaler "
        "pedestrian railed_vehicle regular_vehicle school_bus sign stop_sign stroller traffic_light_trailer truck "
        "truck_cab vehicular_trailer wheelchair wheeled_device wheeled_rider"
    ),
    "KITTI360BoxDetectionLabel": (
        "bicycle box bus car caravan lamp motorcycle person pole rider smallpole stop traffic_light traffic_sign "
        "trailer train trash_bin truck vending_machine"
    ),
    "NuPlanBoxDetectionLabel": "vehicle bicycle pedestrian traffic_cone barrier czone_sign generic_object",
    "NureasoningBoxDetectionLabel": (
        "vehicle_car vehicle_personal_mobility_bycicle human other_trafficcone other_temporary_trafficsign other_other "
        "vehicle_door vehicle_truck vehicle_bus vehicle_motorcycle vehicle_bicycle human_pedestrian "
        "construction_traffic_cone"
    ),
    "NuScenesBoxDetectionLabel": (
        "vehicle_car vehicle_truck vehicle_bus_bendy vehicle_bus_rigid vehicle_construction "
        "vehicle_emergency_ambulance vehicle_emergency_police vehicle_trailer vehicle_bicycle vehicle_motorcycle "
        "human_pedestrian_adult human_pedestrian_child human_pedestrian_construction_worker "
        "human_pedestrian_personal_mobility human_pedestrian_police_officer human_pedestrian_stroller "
        "human_pedestrian_wheelchair movable_object_trafficcone movable_object_barrier "
        "movable_object_pushable_pullable movable_object_debris static_object_bicycle_rack animal"
    ),
    "PandasetBoxDetectionLabel": (
        "animals_bird animals_other bicycle bus car cones construction_signs emergency_vehicle medium_sized_truck "
        "motorcycle motorized_scooter other_vehicle_construction_vehicle other_vehicle_pedicab other_vehicle_uncommon "
        "pedestrian pedestrian_with_object personal_mobility_device pickup_truck pylons road_barriers "
        "rolling_containers semi_truck signs temporary_construction_barriers towed_object train tram_subway"
    ),
    "WODPerceptionBoxDetectionLabel": "type_unknown type_vehicle type_pedestrian type_sign type_cyclist",
    "WODMotionBoxDetectionLabel": "type_unset type_vehicle type_pedestrian type_cyclist type_other",
    "PhysicalAIAVBoxDetectionLabel": (
        "automobile person bus heavy_truck other_vehicle protruding_object rider stroller trailer animal "
        "train_or_tram_car trolley_bus"
    ),
    "GriffinBoxDetectionLabel": "pedestrian car truck bus motorcycle bicycle",
}
"""Names of the classes by the enumeration, in the order of their numbers."""

OURS = {
    "car": "vehicle regular_vehicle vehicle_car car caravan automobile pickup_truck type_vehicle",
    "truck": "large_vehicle box_truck truck truck_cab vehicle_truck medium_sized_truck semi_truck heavy_truck",
    "bus": "articulated_bus bus school_bus vehicle_bus vehicle_bus_bendy vehicle_bus_rigid trolley_bus",
    "trailer": "vehicular_trailer trailer vehicle_trailer towed_object",
    "construction_vehicle": "vehicle_construction other_vehicle_construction_vehicle",
    "motorcycle": "motorcycle vehicle_motorcycle motorized_scooter",
    "bicycle": (
        "two_wheeler bicycle vehicle_personal_mobility_bycicle vehicle_bicycle type_cyclist rider other_vehicle_pedicab"
    ),
    "pedestrian": (
        "person bicyclist motorcyclist official_signaler pedestrian wheelchair wheeled_rider human human_pedestrian "
        "human_pedestrian_adult human_pedestrian_child human_pedestrian_construction_worker "
        "human_pedestrian_police_officer pedestrian_with_object type_pedestrian"
    ),
    "traffic_cone": (
        "traffic_cone construction_cone other_trafficcone construction_traffic_cone movable_object_trafficcone cones "
        "pylons"
    ),
    "barrier": "barrier construction_barrel movable_object_barrier road_barriers temporary_construction_barriers",
    "animal": "animal dog animals_bird animals_other",
    "debris": "movable_object_debris",
}
"""The names that a class of ours takes; all others are left out. Some datasets have one name for every vehicle."""
LABELS = {name: ours for ours, names in OURS.items() for name in names.split()}


def names_of(enumeration: str) -> dict[int, str]:
    """Returns the names by number of an enumeration, which may be a dotted path; none for an unknown one."""
    return dict(enumerate(NUMBERED.get(enumeration.rpartition(".")[2], "").split()))
