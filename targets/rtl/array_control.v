// Walks the array through a tile step: for every row step, for every column step, over the words of
// the reduction, one address a cycle. A step starts when its tiles are there and the half of C is
// free, and ends when its last sum is written: the pipeline drains between two steps.
module array_control #(
    parameter GROUPS = 1, OUTER = 1, INNER = 1, K = 1, ROWS_INNER = 0, A_KEPT = 0, B_KEPT = 0,
    parameter M_STEPS = 1, M_EDGE = 1, N_STEPS = 1, N_EDGE = 1, K_WORDS = 1, K_EDGE = 1,
    parameter A_HALF = 1, B_HALF = 1, C_HALF = 1, A_DOUBLE = 1, B_DOUBLE = 1, C_DOUBLE = 1
) (
    input clk, input reset, input [1:0] a_full, input [1:0] b_full, input [1:0] c_full,
    input ended,                               // the last sum of the step is being written
    output a_free, output b_free, output reg a_half, output reg b_half, output reg c_half, output c_done,
    output reg valid, output first, output last, output fresh, output closing,
    output [31:0] a_address, output [31:0] b_address, output [31:0] c_address
);
    wire k_first, k_last, inner_last, outer_last, finished;
    tile_walk #(GROUPS, OUTER, INNER, K) walk
        (clk, reset, ended, k_first, k_last, inner_last, outer_last, finished);
    wire last_rows = ROWS_INNER ? inner_last : outer_last;
    wire last_columns = ROWS_INNER ? outer_last : inner_last;
    wire [23:0] row_steps = last_rows ? M_EDGE : M_STEPS;
    wire [23:0] column_steps = last_columns ? N_EDGE : N_STEPS;
    wire [23:0] words = k_last ? K_EDGE : K_WORDS;

    reg active;
    reg [23:0] row, column, word;
    reg [31:0] a_row, b_word, c_word;
    wire [31:0] a_base = A_DOUBLE & a_half ? A_HALF : 0;
    wire [31:0] b_base = B_DOUBLE & b_half ? B_HALF : 0;
    wire [31:0] c_base = C_DOUBLE & c_half ? C_HALF : 0;
    wire ready = a_full[a_half] & b_full[b_half] & (!k_first | !c_full[c_half]);
    wire column_end = last & (column == column_steps - 1);
    assign first = word == 0;
    assign last = word == words - 1;
    assign fresh = k_first;
    assign closing = column_end & (row == row_steps - 1);
    assign a_address = a_row + word;
    assign b_address = b_word;
    assign c_address = c_word;
    assign a_free = valid & closing & (!A_KEPT | inner_last);
    assign b_free = valid & closing & (!B_KEPT | inner_last);
    assign c_done = ended & k_last;
    always @(posedge clk)
        if (reset) begin
            active <= 0; valid <= 0; a_half <= 0; b_half <= 0; c_half <= 0;
        end else begin
            if (!active & !finished & ready) begin
                active <= 1; valid <= 1;
                row <= 0; column <= 0; word <= 0;
                a_row <= a_base; b_word <= b_base; c_word <= c_base;
            end
            if (valid) begin
                word <= last ? 24'd0 : word + 24'd1;
                b_word <= column_end ? b_base : b_word + 1;
                if (last) begin
                    column <= column_end ? 24'd0 : column + 24'd1;
                    c_word <= c_word + 1;
                end
                if (column_end) begin row <= row + 24'd1; a_row <= a_row + words; end
                if (closing) valid <= 0;
            end
            if (a_free & A_DOUBLE) a_half <= !a_half;
            if (b_free & B_DOUBLE) b_half <= !b_half;
            if (ended) begin
                active <= 0;
                if (k_last & C_DOUBLE) c_half <= !c_half;
            end
        end
endmodule
