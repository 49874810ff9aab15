//! Figures over time, as SVG text.

use anyhow::Result;
use plotters::{prelude::*, style::text_anchor::HPos};

use crate::report::{
    plot::{COLOURS, LEGEND_WIDTH, WIDTH, drawing, font},
    text::count,
};

const HEIGHT: u32 = 260;

/// A line of a plot.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Seconds, value; what is no number is left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// All series in one picture; none without points.
pub(crate) fn plot(title: &str, series: &[Series]) -> Result<Option<String>> {
    let points = || series.iter().flat_map(|line| &line.points).filter(|point| point.1.is_finite());
    let end = points().fold(0.0, |end: f64, point| end.max(point.0));
    let most = points().fold(0.0, |most: f64, point| most.max(point.1));
    if end <= 0.0 {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let width = WIDTH.unsigned_abs();
        let root = SVGBackend::with_string(&mut svg, (width, HEIGHT)).into_drawing_area();
        let (root, legend) = root.split_horizontally(WIDTH - LEGEND_WIDTH);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, font(16, BLACK, HPos::Left))
            .margin(4)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..end, 0.0..(most * 1.05).max(1.0))
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .label_style(font(12, BLACK, HPos::Center))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
            .y_label_formatter(&|value| count(*value))
            .draw()
            .map_err(drawing)?;
        let mut y = 44;
        for (line, colour) in series.iter().zip(COLOURS.iter().cycle()) {
            let style = RGBColor(colour.0, colour.1, colour.2).stroke_width(2);
            let finite = line.points.iter().copied().filter(|point| point.1.is_finite());
            chart.draw_series(LineSeries::new(finite, style)).map_err(drawing)?;
            let mark = PathElement::new([(8, y + 6), (32, y + 6)], style);
            legend.draw(&mark).map_err(drawing)?;
            let name = Text::new(line.name.clone(), (40, y), font(12, BLACK, HPos::Left));
            legend.draw(&name).map_err(drawing)?;
            y += 15;
        }
        root.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_points_has_no_picture() -> Result<()> {
        let line = |points| [Series { name: "x".to_owned(), points }];
        assert_eq!(plot("empty", &line(Vec::new()))?, None);
        let drawn = plot("full", &line(vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, 3.0)]))?;
        assert!(drawn.is_some_and(|svg| svg.starts_with("<svg")));
        Ok(())
    }
}
