// Writes tiles of C to memory in the order in which they are done, word by word, beat by beat.
module result_store #(
    parameter GROUPS = 1, OUTER = 1, INNER = 1, ROWS_INNER = 0,
    parameter M_STEPS = 1, M_EDGE = 1, N_STEPS = 1, N_EDGE = 1, BEATS = 1,
    parameter HALF = 1, DOUBLE = 1, BYTES = 1, WORD = 1
) (
    input clk, input reset, input [1:0] full, output free, output reg half,
    output [31:0] word_address, input [WORD*8-1:0] word,
    output reg write, output reg [31:0] write_address, output [BYTES*8-1:0] write_data, output done
);
    wire k_first, k_last, inner_last, outer_last, finished;
    tile_walk #(GROUPS, OUTER, INNER, 1) walk
        (clk, reset, free, k_first, k_last, inner_last, outer_last, finished);
    wire last_rows = ROWS_INNER ? inner_last : outer_last;
    wire last_columns = ROWS_INNER ? outer_last : inner_last;
    wire [31:0] words = last_rows ? (last_columns ? M_EDGE * N_EDGE : M_EDGE * N_STEPS)
                                  : (last_columns ? M_STEPS * N_EDGE : M_STEPS * N_STEPS);
    reg active;
    reg [31:0] index;
    reg [23:0] beat, shown;
    wire word_end = beat == BEATS - 1;
    wire [BEATS*BYTES*8-1:0] padded = word;
    assign free = active & word_end & (index == words - 1);
    assign word_address = (DOUBLE & half ? HALF : 0) + index;
    assign write_data = padded[shown*BYTES*8 +: BYTES*8];
    assign done = finished & !write;
    always @(posedge clk)
        if (reset) begin
            active <= 0; half <= 0; write <= 0; write_address <= 0; beat <= 0; index <= 0;
        end else begin
            write <= active;
            shown <= beat;
            if (write) write_address <= write_address + 1;
            if (!active & !finished & full[half]) active <= 1;
            if (active) begin
                beat <= word_end ? 24'd0 : beat + 24'd1;
                if (word_end) index <= free ? 32'd0 : index + 32'd1;
            end
            if (free) begin
                active <= 0;
                if (DOUBLE) half <= !half;
            end
        end
endmodule
