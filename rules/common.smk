# What several rules say alike.


def in_report(place, figure):
    """A figure as Snakemake's own report has it: what its folder holds, with the caption written when it was drawn."""
    return report(
        directory(LAYOUT.figure_folder(place, figure)),
        patterns=["{figure}.svg"],
        caption=str(Path.cwd() / PLACES.figure(place, figure, "rst")),
        category="Figures",
        subcategory="subjects side by side" if place == ALL_SUBJECTS else place,
        labels=lambda wildcards: {"figure": get_figure(figure).TITLE},
    )
