"""Exports are read as providers write them; what is wrong is told with its line."""

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest

from gateway.cli import usage_export
from gateway.cli.exits import NOT_FOUND, USAGE, Stop
from gateway.cli.usage_export import Export, read

OPENAI_USAGE = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,"
    "api_key_id,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens,"
    "input_uncached_tokens\n"
)
OPENAI_COSTS = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,"
    "project_id,organization_id,organization_name\n"
)
ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,"
    "usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,"
    "web_search_count,inference_geo,speed\n"
)
ANTHROPIC_COST = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,"
    "list_price_usd,cost_type,inference_geo,speed\n"
)
PLAIN = "date,model,input_tokens,output_tokens,cost_usd\n"


def export(folder: Path, text: str) -> Export:
    path = folder / "export.csv"
    path.write_text(text, encoding="utf-8")
    return read(path)


def told(found: Export) -> list[tuple[str, str, dict[str, Fraction]]]:
    return [(row.day.isoformat(), row.model, dict(row.figures)) for row in found.rows]


def test_openai_usage_with_days_of_nothing(tmp_path: Path) -> None:
    found = export(
        tmp_path,
        OPENAI_USAGE + "1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,"
        "proj_1,10.0,user-1,key_1,gpt-4o-2024-08-06,FALSE,default,59200.0,10646.0,5760.0,53440.0\n"
        "1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,,,,,,,,,,,\n",
    )
    assert (found.format, found.metrics) == ("OpenAI usage", ("input", "output", "cached"))
    figures = {"input": 59_200, "output": 10_646, "cached": 5_760}
    assert told(found) == [("2025-10-05", "gpt-4o-2024-08-06", figures)]
    assert found.days == [date(2025, 10, 5), date(2025, 10, 6)]


def test_openai_costs_by_line_item(tmp_path: Path) -> None:
    found = export(
        tmp_path,
        OPENAI_COSTS + "1759622400,1759708800,a,b,0.003835980000000000000000000000,usd,"
        '"gpt-5-nano, input",p,o,O\n'
        '1759622400.0,1759708800,a,b,1e-05,usd,"gpt-5-nano, output",p,o,O\n',
    )
    assert found.metrics == ("cost",)
    assert told(found) == [
        ("2025-10-05", "gpt-5-nano", {"cost": 3_835_980}),
        ("2025-10-05", "gpt-5-nano", {"cost": 10_000}),
    ]


def test_anthropic_usage_counts_cached_and_written_as_input(tmp_path: Path) -> None:
    row = "2026-03-22,claude-haiku-4-5-20251001,key,Default,standard,≤ 200k,100,20,3,4000,50,0,x,\n"
    found = export(tmp_path, ANTHROPIC_USAGE + row)
    figures = {"input": 4_123, "output": 50, "cached": 4_000}
    assert told(found) == [("2026-03-22", "claude-haiku-4-5-20251001", figures)]


def test_anthropic_cost_is_rounded_to_cents(tmp_path: Path) -> None:
    head = "2026-08-04,Claude Haiku 4.5,Default,key,message,≤ 200k"
    rows = f"{head},output,0.05,0.05,token,x,\n{head},output,0.0512,0.05,token,x,\n"
    found = export(tmp_path, ANTHROPIC_COST + rows)
    assert [(row.figures["cost"], row.rounding) for row in found.rows] == [
        (50_000_000, 5_000_000),
        (51_200_000, 0),
    ]


def test_the_plain_format_in_the_spellings_of_spreadsheets(tmp_path: Path) -> None:
    for delimiter in ",;\t":
        text = "\ufeff" + PLAIN + "2026-09-01,m,5,7,0.25\n\n 2026-09-02 , m ,0,1,0\n"
        found = export(tmp_path, text.replace(",", delimiter).replace("\n", "\r\n"))
        assert told(found) == [
            ("2026-09-01", "m", {"input": 5, "output": 7, "cost": 250_000_000}),
            ("2026-09-02", "m", {"input": 0, "output": 1, "cost": 0}),
        ]


def test_a_day_is_one_of_utc(tmp_path: Path) -> None:
    row = "2026-09-01T23:30:00-02:00,m,5,7,0.25\n"
    assert export(tmp_path, PLAIN + row).days == [date(2026, 9, 2)]


def test_every_wrong_row_is_told_with_its_line(tmp_path: Path) -> None:
    rows = (
        "2026-09-01,m,5,7,0.25",
        "soon,m,5,7,0.25",
        "2026-09-01,m,5.5,7,0.25",
        "2026-09-01,m,5,-7,0.25",
        '2026-09-01,"m\n",5,7,$1',
        "2026-09-01,,5,7,1",
        "2026-09-01,m,5,7",
        "2026-09-01,m,5,7,",
    )
    with pytest.raises(Stop) as stopped:
        export(tmp_path, PLAIN + "\n".join(rows))
    assert stopped.value.code == USAGE
    said = [line.removeprefix(f"{tmp_path}/") for line in stopped.value.message.splitlines()]
    assert said == [
        "export.csv:3  date: 'soon' is no date; 2026-12-31 is one",
        "export.csv:4  input_tokens: '5.5' is no count of tokens",
        "export.csv:5  output_tokens: '-7' is no count of tokens",
        "export.csv:7  cost_usd: '$1' is no amount of dollars; 0.25 is one",
        "export.csv:8  no model; export it grouped by model (OpenAI's costs: by line item)",
        "export.csv:9  4 cells, but the head has 5",
        "export.csv:10  cost_usd: '' is no amount of dollars; 0.25 is one",
    ]


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="and 980 more rows"):
        export(tmp_path, PLAIN + "soon,m,5,7,1\n" * 1_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the columns of an export"),
        ("day,model,cost_usd,input_tokens\n", "nearest to plain, but without date, output_tokens"),
        (OPENAI_USAGE.replace("num_model_requests,", ""), "nearest to OpenAI usage"),
        (PLAIN, "has no rows"),
        (PLAIN.replace("date", "date,date") + "2026-09-01,x,m,1,1,1\n", "date stands twice"),
        (PLAIN + '2026-09-01,"m,1,1,1\n', "no table"),
        (PLAIN.strip() + ",currency\n2026-09-01,m,1,1,1,EUR\n", "not in dollars: EUR (line 2)"),
        (
            OPENAI_COSTS
            + '1759622400,1,a,b,1,usd,"m, i",p,o,O\n1759622400,1,a,b,1,eur,"m, i",p,o,O\n',
            "mixes currencies: USD (line 2), EUR (line 3)",
        ),
    ],
)
def test_a_file_that_cannot_be_held_against_the_ledger(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(Stop) as stopped:
        export(tmp_path, text)
    assert stopped.value.code == USAGE
    assert said in stopped.value.message


def test_no_file_no_text_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop, match="cannot be read") as stopped:
        read(tmp_path / "missing.csv")
    assert stopped.value.code == NOT_FOUND
    path = tmp_path / "bytes.csv"
    path.write_bytes(PLAIN.encode() + b"2026-09-01,\xff,1,1,1\n")
    with pytest.raises(Stop, match="UTF-8"):
        read(path)
    monkeypatch.setattr(usage_export, "MOST_ROWS", 10)
    with pytest.raises(Stop, match="more than 10 rows"):
        export(tmp_path, PLAIN + "2026-09-01,m,1,1,1\n" * 20)
