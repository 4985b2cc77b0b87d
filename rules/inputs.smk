# In: the study. Out: dummy images of exact sizes, photographs with questions and their manifest.


rule make_dummy_image:
    output:
        image=LAYOUT.dummies / "{image}",
    log:
        LAYOUT.log("make_dummy_image-{image}"),
    localrule: True
    conda:
        "../envs/measure.yaml"
    params:
        width_px=lambda wildcards: DUMMIES[wildcards.image].width_px,
        height_px=lambda wildcards: DUMMIES[wildcards.image].height_px,
        seed=lambda wildcards: DUMMIES[wildcards.image].seed,
    message:
        "Making the dummy image {wildcards.image}"
    script:
        "../scripts/make_dummy_image.py"


rule fetch_dataset:
    output:
        dataset=directory(LAYOUT.dataset),
    log:
        LAYOUT.log("fetch_dataset"),
    localrule: True
    conda:
        "../envs/measure.yaml"
    params:
        # not the whole study: only these decide which photographs are fetched
        dataset=STUDY.dataset.model_dump(mode="json"),
    message:
        "Fetching photographs and questions"
    script:
        "../scripts/fetch_dataset.py"
