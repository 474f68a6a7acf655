"""Measures of edits: true clips reach every bar, what was not done does not, and the protocol runs and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumiere.conditioning.frames import num_channels
from lumiere.data.storybook import REPEATING_MOTIONS, frame_times, render
from lumiere.evaluation.edit_protocol import evaluate_edits
from lumiere.evaluation.edits import BARS, Case, border_region, draw_case, measures, summarise
from lumiere.model.inflate import widen_input
from lumiere.video import from_uint8, to_uint8
from tests.tiny_pipeline import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:the model")


def case(edit: str, index: int = 0) -> Case:
    return draw_case(index, edit, num_frames=80, size=(32, 32))


def drawn(one: Case, **changes: object) -> Tensor:
    """The case's clip with its actor changed; ``object`` None leaves it out."""
    actor = one.scene.actors[0]
    actors = () if changes.get("object", "") is None else (replace(actor, **changes),)  # type: ignore[arg-type]
    return render([replace(one.scene, actors=actors)], frame_times(80), size=32)


def share(edit: str, made: Tensor, one: Case) -> dict[str, float]:
    return summarise([measures(edit, one, made)])


def test_the_true_clip_is_the_best_animation_and_a_still_one_is_none() -> None:
    one = next(found for index in range(20) if (found := case("animate", index)).scene.actors[0].motion == "spin")
    true = share("animate", one.clip, one)
    assert all(bar.holds(true[name]) for name, bar in BARS["animate"].items())
    still = share("animate", one.clip[:, :, :1].expand_as(one.clip), one)
    assert still["object kept"] == 1 and still["motion right"] == 0
    jump = one.clip.clone()
    jump[:, :, 0] = -jump[:, :, 0]
    name = "first step over mean step"
    assert not BARS["animate"][name].holds(share("animate", jump, one)[name])


def test_an_object_is_replaced_or_removed_only_where_it_is() -> None:
    one = case("replace")
    other = drawn(one, object=one.new_object)
    assert share("replace", other, one) == {"new object there": 1}
    assert share("replace", one.clip, one) == {"new object there": 0}
    assert one.new_object in one.prompt("replace") or one.new_object not in one.prompt("animate")
    empty = drawn(one, object=None)
    assert share("remove", empty, one) == {"object gone": 1}
    assert share("remove", one.clip, one) == {"object gone": 0}


def test_every_object_is_asked_for_in_another_ones_place() -> None:
    asked = [case("replace", index) for index in range(16)]
    assert all(one.new_object != one.scene.actors[0].object for one in asked)
    assert len({one.new_object for one in asked}) >= 6


def test_the_region_holds_all_of_the_object_and_not_all_of_the_picture() -> None:
    for index in range(8):
        one = case("remove", index)
        differs = (one.clip - drawn(one, object=None)).abs().amax(1, keepdim=True) > 0.02
        assert bool((one.region[differs] == 1).all())
        assert 0 < float(one.region.mean()) < 0.8
        assert 0 < float(one.still_region.mean()) < 1
        assert bool((one.still_region[..., 1:-1, 1:-1] >= one.region.amax(2)[..., 1:-1, 1:-1]).all())


def test_a_seam_shows_in_the_gradient_across_the_border() -> None:
    one = case("reconstruct")
    name = "gradient across the border over true"
    assert share("reconstruct", one.clip, one)[name] == 1
    seam = torch.where(border_region(one) > 0, (one.clip + 0.3).clamp(-1, 1), one.clip)
    assert not BARS["reconstruct"][name].holds(share("reconstruct", seam, one)[name])


def test_a_cinemagraph_moves_inside_and_nowhere_else() -> None:
    one = case("cinemagraph")
    still = one.clip[:, :, :1].expand_as(one.clip)
    inside = one.still_region[:, :, None] > 0
    true = share("cinemagraph", torch.where(inside, one.clip, still), one)
    assert all(bar.holds(true[name]) for name, bar in BARS["cinemagraph"].items())
    assert share("cinemagraph", one.clip, one)["pixels unchanged outside"] == 0
    frozen = share("cinemagraph", still, one)
    assert frozen["pixels unchanged outside"] == 1 and frozen["frame difference over true"] == 0
    # As the protocol stores it: in 8 bits.
    stored = from_uint8(to_uint8(one.clip[0, :, :1].expand(-1, 80, -1, -1)))[None]
    assert share("cinemagraph", stored, one)["pixels unchanged outside"] == 1


def test_a_loop_closes_and_moves() -> None:
    assert all(case("loop", index).scene.actors[0].motion in REPEATING_MOTIONS for index in range(4))
    one = next(found for index in range(20) if (found := case("loop", index)).scene.actors[0].motion == "orbit")
    there_and_back = torch.cat([one.clip[:, :, :40], one.clip[:, :, :40].flip(2)], dim=2).roll(10, 2)
    closed = share("loop", there_and_back, one)
    assert BARS["loop"]["wrap over neighbours"].holds(closed["wrap over neighbours"])
    assert BARS["loop"]["motion over true"].holds(closed["motion over true"])
    assert share("loop", one.clip[:, :, :1].repeat(1, 1, 79, 1, 1), one)["motion over true"] == 0


@pytest.mark.parametrize("motion", ["bounce", "pulse", "orbit"])
def test_a_true_loop_goes_on_as_it_began(motion: str) -> None:
    """Five seconds are whole periods of the storybook's; what bounces or pulses is faster there than on the mean."""
    cases = (case("loop", index) for index in range(64))
    # Nothing else moves in a desert.
    one = next(
        found for found in cases if found.scene.actors[0].motion == motion and found.scene.background == "desert"
    )
    true = share("loop", one.clip, one)
    assert true["wrap over a true loop's"] == pytest.approx(1, abs=0.1)
    assert (true["wrap over neighbours"] > BARS["loop"]["wrap over neighbours"].high) == (motion != "orbit")


def test_a_path_ends_where_it_ends() -> None:
    one = next(found for index in range(20) if (found := case("interpolate", index)).scene.actors[0].motion == "rise")
    assert share("interpolate", one.clip, one) == {"path ends in place": 1, "path ends as the true one": 1}
    assert share("interpolate", one.clip.flip(2), one) == {"path ends in place": 0, "path ends as the true one": 0}


def test_what_is_fast_is_not_in_its_last_place_one_frame_before() -> None:
    one = draw_case(5, "interpolate", num_frames=80, size=(32, 32))
    assert (one.scene.actors[0].motion, one.scene.actors[0].speed) == ("orbit", "fast")
    assert share("interpolate", one.clip, one) == {"path ends in place": 0, "path ends as the true one": 1}
    elsewhere = one.clip.clone()
    elsewhere[:, :, -2] = one.clip[:, :, 20]
    assert share("interpolate", elsewhere, one)["path ends as the true one"] == 0


def test_a_recoloured_clip_has_the_new_colour_on_the_old_path() -> None:
    one = next(found for index in range(20) if (found := case("recolour", index)).scene.actors[0].motion == "rise")
    other = drawn(one, colour=one.new_colour)
    assert share("recolour", other, one) == {"new colour there": 1, "path kept": 1}
    assert share("recolour", one.clip, one) == {"new colour there": 0, "path kept": 1}
    assert share("recolour", other.flip(2), one) == {"new colour there": 1, "path kept": 0}
    assert one.new_colour in one.prompt("recolour") and one.scene.actors[0].colour not in one.prompt("recolour")


def test_a_brief_prompt_names_the_object_and_its_new_colour_alone() -> None:
    one = case("recolour_briefly")
    actor = one.scene.actors[0]
    assert one.prompt("recolour_briefly").split() == ["a", one.new_colour, actor.object]
    assert measures("recolour_briefly", one, one.clip) == measures("recolour", one, one.clip)


def test_prompts_say_what_is_asked_for_and_no_more() -> None:
    one = case("animate")
    actor = one.scene.actors[0]
    assert actor.colour not in one.prompt("animate") and actor.object not in one.prompt("animate")
    assert actor.object not in one.prompt("remove") and actor.object in one.prompt("cinemagraph")


def test_the_protocol_measures_every_edit_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(height=32, width=32, default_steps=1, default_guidance_scale=1.0)
    with pytest.raises(ValueError, match="never told of given frames"):
        evaluate_edits(pipeline, out=tmp_path, num_scenes=1, progress=False)
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    with pytest.raises(ValueError, match="known are animate"):
        evaluate_edits(pipeline, out=tmp_path, edits=["paint"], progress=False)
    with pytest.raises(ValueError, match="1 to 64"):
        evaluate_edits(pipeline, out=tmp_path, num_scenes=65, progress=False)
    report = evaluate_edits(pipeline, out=tmp_path, num_scenes=1, steps=1, progress=False)
    assert list(report["edits"]) == list(BARS)
    for edit, bars in BARS.items():
        assert list(report["edits"][edit]["summary"]) == list(bars)
        assert (tmp_path / edit / "sheets" / "clips_00.png").is_file()
    assert json.loads((tmp_path / "report.json").read_text())["edits"] == json.loads(json.dumps(report["edits"]))
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = evaluate_edits(pipeline, out=tmp_path, num_scenes=1, steps=1, progress=False)
    assert again["edits"] == report["edits"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == stored
