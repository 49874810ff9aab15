//! The plots, as SVG text.

use anyhow::{Result, anyhow};
use plotters::{
    coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::text::count;
use crate::{
    scenario::Workload,
    summary::{Cell, reference},
};

/// One bar per contender, with a line where the reference ends.
pub(super) fn throughput_plot(workload: &Workload, cells: &[Cell]) -> Result<String> {
    let most = cells.iter().map(|cell| cell.messages_per_s).fold(1.0, f64::max);
    let height = TITLE_HEIGHT + BAR_PITCH * pixels(cells.len() as f64) + 10;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH as u32, height.unsigned_abs()))
            .into_drawing_area();
        let draw = |result: Result<(), DrawingAreaErrorKind<_>>| result.map_err(drawing);
        draw(root.draw(&Text::new(
            format!("{}: messages/s", workload.scenario.name()),
            (0, 4),
            font(16, BLACK, HPos::Left),
        )))?;
        let scale = f64::from(WIDTH - LABEL_WIDTH - 90) / most;
        for (row, cell) in cells.iter().enumerate() {
            let top = TITLE_HEIGHT + BAR_PITCH * pixels(row as f64);
            let end = LABEL_WIDTH + pixels(cell.messages_per_s * scale);
            let middle = top + BAR_HEIGHT / 2;
            let label = Text::new(
                cell.contender.clone(),
                (LABEL_WIDTH - 8, middle),
                font(13, BLACK, HPos::Right).pos(Pos::new(HPos::Right, VPos::Center)),
            );
            draw(root.draw(&label))?;
            let bar = Rectangle::new(
                [(LABEL_WIDTH, top), (end, top + BAR_HEIGHT)],
                bar_colour(&cell.contender).filled(),
            );
            draw(root.draw(&bar))?;
            let value = Text::new(
                count(cell.messages_per_s),
                (end + 6, middle),
                font(13, BLACK, HPos::Left).pos(Pos::new(HPos::Left, VPos::Center)),
            );
            draw(root.draw(&value))?;
        }
        if let Some(epoll) =
            cells.iter().find(|cell| !cell.spins()).and_then(|cell| reference(cells, cell))
        {
            let x = LABEL_WIDTH + pixels(epoll.messages_per_s * scale);
            let line = [(x, TITLE_HEIGHT - 4), (x, height - 8)];
            draw(root.draw(&DashedPathElement::new(line, 4, 4, BLACK.mix(0.6))))?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(svg)
}

/// Round-trip time by quantile, both axes logarithmic; none for one-way traffic.
pub(super) fn latency_plot(cells: &[Cell]) -> Result<Option<String>> {
    let values = || cells.iter().flat_map(|cell| &cell.quantiles_ns).map(|&(_, value)| value);
    let Some(least) = values().reduce(f64::min) else { return Ok(None) };
    let most = values().fold(least, f64::max);
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (WIDTH as u32, PLOT_HEIGHT)).into_drawing_area();
        let (root, legend) = root.split_horizontally(WIDTH - LEGEND_WIDTH);
        let y = (least / 1e3 * 0.8..most / 1e3 * 1.25).log_scale();
        let mut chart = ChartBuilder::on(&root)
            .caption("round trip by percentile, µs", font(16, BLACK, HPos::Left))
            .margin(4)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d(Nines, y)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .label_style(font(12, BLACK, HPos::Center))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(8)
            .x_label_formatter(&|nines| format!("{}", percentile(*nines)))
            .y_label_formatter(&|value| format!("{value}"))
            .draw()
            .map_err(drawing)?;
        for (number, cell) in cells.iter().enumerate() {
            let points = cell.quantiles_ns.iter().map(|&(at, value)| (nines(at), value / 1e3));
            let style = line_style(number, cell);
            if cell.spins() {
                let series = DashedLineSeries::new(points, 6, 4, style);
                chart.draw_series(series).map_err(drawing)?;
            } else {
                chart.draw_series(LineSeries::new(points, style)).map_err(drawing)?;
            }
        }
        draw_legend(&legend, cells)?;
        root.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

/// Messages per second over the number of connections.
pub(super) fn sweep_plot(workloads: &[(&Workload, &[Cell])]) -> Result<String> {
    let cells = || workloads.iter().flat_map(|(_, cells)| cells.iter());
    let most = cells().map(|cell| cell.messages_per_s).fold(1.0, f64::max);
    let connections = workloads.iter().map(|(workload, _)| workload.connections as f64);
    let (first, last) = connections
        .clone()
        .fold((f64::MAX, 1.0_f64), |(first, last), count| (first.min(count), last.max(count)));
    let mut contenders: Vec<Cell> = Vec::new();
    for cell in cells() {
        if contenders.iter().all(|known| known.contender != cell.contender) {
            contenders.push(cell.clone());
        }
    }
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (WIDTH as u32, PLOT_HEIGHT)).into_drawing_area();
        let (root, legend) = root.split_horizontally(WIDTH - LEGEND_WIDTH);
        let x = (first * 0.9..last * 1.1).log_scale().base(2.0);
        let mut chart = ChartBuilder::on(&root)
            .caption("messages/s by number of connections", font(16, BLACK, HPos::Left))
            .margin(4)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(x.with_key_points(connections.collect()), 0.0..most * 1.1)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .label_style(font(12, BLACK, HPos::Center))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_label_formatter(&|value| format!("{value}"))
            .y_label_formatter(&|value| count(*value))
            .draw()
            .map_err(drawing)?;
        for (number, contender) in contenders.iter().enumerate() {
            let points: Vec<(f64, f64)> = workloads
                .iter()
                .filter_map(|(workload, cells)| {
                    let cell = cells.iter().find(|cell| cell.contender == contender.contender)?;
                    Some((workload.connections as f64, cell.messages_per_s))
                })
                .collect();
            let style = line_style(number, contender);
            chart.draw_series(LineSeries::new(points.clone(), style)).map_err(drawing)?;
            let dots = points.into_iter().map(|at| Circle::new(at, 4, style.filled()));
            chart.draw_series(dots).map_err(drawing)?;
        }
        draw_legend(&legend, &contenders)?;
        root.present().map_err(drawing)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_legend(area: &Area<'_>, cells: &[Cell]) -> Result<()> {
    for (row, cell) in cells.iter().enumerate() {
        let y = 44 + 20 * pixels(row as f64);
        let line = [(8, y), (38, y)];
        let style = line_style(row, cell);
        let result = if cell.spins() {
            area.draw(&DashedPathElement::new(line, 6, 4, style))
        } else {
            area.draw(&PathElement::new(line, style))
        };
        result.map_err(drawing)?;
        let anchor = font(13, BLACK, HPos::Left).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(cell.contender.clone(), (44, y), anchor)).map_err(drawing)?;
    }
    Ok(())
}

/// Quantiles by their number of nines: 0.9 is one, 0.99 two.
#[derive(Clone, Copy, Debug)]
struct Nines;

impl Ranged for Nines {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let range = self.range();
        let part = (value - range.start) / (range.end - range.start);
        limit.0 + pixels(part * f64::from(limit.1 - limit.0))
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        [0.1, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999].map(nines).to_vec()
    }

    fn range(&self) -> std::ops::Range<f64> {
        nines(0.1)..4.1
    }
}

fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn percentile(nines: f64) -> f64 {
    let percent = 100.0 * (1.0 - 10_f64.powf(-nines));
    (percent * 100.0).round() / 100.0
}

pub(crate) fn font(size: i32, colour: RGBColor, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(side, VPos::Top))
}

fn line_style(number: usize, cell: &Cell) -> ShapeStyle {
    let colour = COLOURS[number % COLOURS.len()];
    let width = if is_own(&cell.contender) { 3 } else { 2 };
    RGBColor(colour.0, colour.1, colour.2).stroke_width(width)
}

fn bar_colour(contender: &str) -> RGBColor {
    if is_own(contender) { RGBColor(0, 110, 190) } else { RGBColor(148, 160, 176) }
}

fn is_own(contender: &str) -> bool {
    contender.starts_with("ringpost")
}

#[expect(clippy::cast_possible_truncation, reason = "the value is a position on a small picture")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

pub(crate) fn drawing<E: std::error::Error + Send + Sync>(
    error: DrawingAreaErrorKind<E>,
) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}

pub(crate) const WIDTH: i32 = 920;
const PLOT_HEIGHT: u32 = 400;
pub(crate) const LEGEND_WIDTH: i32 = 190;
const LABEL_WIDTH: i32 = 170;
const TITLE_HEIGHT: i32 = 32;
const BAR_HEIGHT: i32 = 16;
const BAR_PITCH: i32 = 22;

pub(crate) const COLOURS: [(u8, u8, u8); 14] = [
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (90, 90, 90),
    (188, 170, 20),
    (23, 175, 190),
    (0, 70, 140),
    (0, 130, 90),
    (170, 60, 0),
    (110, 30, 110),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_percentiles_agree() {
        for (quantile, percent) in [(0.5, 50.0), (0.99, 99.0), (0.9999, 99.99)] {
            assert_eq!(percentile(nines(quantile)), percent);
        }
    }
}
