// Reads tiles of A by im2col addressing: for every row of the tile, for every word of its taps, the
// beats of the word from group + row + tap. Row r goes into bank r % PE_M at address
// (r / PE_M) * words + word of the buffer half that is free. All offsets are in beats.
module row_loader #(
    parameter GROUPS = 1, OUTER = 1, INNER = 1, K = 1,     // the steps in which a tile is read
    parameter ROWS_INNER = 0,                              // rows are the inner loop, and not the outer
    parameter PE_M = 1, TILE_M = 1, M_EDGE = 1,            // rows of a tile, and of the last one
    parameter K_WORDS = 1, K_EDGE = 1, BEATS = 1,          // words of a row; beats of a word
    parameter HALF = 1, DOUBLE = 1, N_STRIDE = 0,          // words of half a bank; a column block further on
    parameter BYTES = 1, WORD = 1,                         // of the port, of a word
    parameter GD = 1, RD = 1, TD = 1,                      // digits of groups, rows and taps
    parameter [GD*32-1:0] G_EXTENT = 1, G_STEP = 0,
    parameter [RD*32-1:0] R_EXTENT = 1, R_STEP = 0,
    parameter [TD*32-1:0] T_EXTENT = 1, T_STEP = 0
) (
    input clk, input reset, input run, input [1:0] full, output loaded, output reg half,
    output reg read, output reg [31:0] read_address, input read_ready,
    input read_valid, input [BYTES*8-1:0] read_data,
    output reg [PE_M-1:0] write, output reg [31:0] write_address, output reg [WORD*8-1:0] write_data
);
    wire k_first, k_last, inner_last, outer_last, finished;
    tile_walk #(GROUPS, OUTER, INNER, K) walk
        (clk, reset, loaded, k_first, k_last, inner_last, outer_last, finished);
    wire last_rows = ROWS_INNER ? inner_last : outer_last;
    wire next_rows = k_last & (ROWS_INNER | inner_last);
    wire last_block = ROWS_INNER ? outer_last : inner_last;
    wire next_block = k_last & (!ROWS_INNER | inner_last);
    wire [23:0] rows = last_rows ? M_EDGE : TILE_M;
    wire [23:0] words = k_last ? K_EDGE : K_WORDS;
    wire [23:0] row_beats = k_last ? K_EDGE * BEATS : K_WORDS * BEATS;

    reg [GD*24+31:0] group;
    reg [RD*24+31:0] row, first_row;
    reg [TD*24+31:0] tap, first_tap, after_tap;
    wire [GD*24+31:0] next_group;
    wire [RD*24+31:0] next_row;
    wire [TD*24+31:0] next_tap;
    odometer #(GD, G_EXTENT, G_STEP) count_groups (group, next_group);
    odometer #(RD, R_EXTENT, R_STEP) count_rows (row, next_row);
    odometer #(TD, T_EXTENT, T_STEP) count_taps (tap, next_tap);

    // requests
    reg busy, asking;
    reg [23:0] asked_rows, asked_beats;
    reg [31:0] block;
    wire last_beat = asked_beats == row_beats - 1;
    always @(posedge clk)
        if (reset) begin
            busy <= 0; asking <= 0; read <= 0;
            group <= 0; row <= 0; first_row <= 0; tap <= 0; first_tap <= 0; after_tap <= 0; block <= 0;
        end else begin
            if (read_ready) read <= 0;
            if (run & !busy & !finished & !full[half]) begin
                busy <= 1; asking <= 1;
                asked_rows <= 0; asked_beats <= 0;
                row <= first_row; tap <= first_tap;
            end
            if (asking & (!read | read_ready)) begin
                read <= 1;
                read_address <= group[GD*24 +: 32] + block + row[RD*24 +: 32] + tap[TD*24 +: 32];
                tap <= last_beat ? first_tap : next_tap;
                asked_beats <= last_beat ? 24'd0 : asked_beats + 24'd1;
                if (last_beat) begin
                    after_tap <= next_tap;
                    row <= next_row;
                    asked_rows <= asked_rows + 24'd1;
                    if (asked_rows == rows - 1) asking <= 0;
                end
            end
            if (loaded) begin
                busy <= 0;
                first_tap <= k_last ? {(TD*24+32){1'b0}} : after_tap;
                if (next_rows) first_row <= last_rows ? {(RD*24+32){1'b0}} : row;
                if (next_block) block <= last_block ? 0 : block + N_STRIDE;
                if (k_last & inner_last & outer_last) group <= next_group;
            end
        end

    // replies, in the order of the requests
    reg [23:0] word, got_rows, lane;
    reg [31:0] base;
    wire [WORD*8-1:0] whole;
    wire word_end;
    word_beats #(BEATS, BYTES) gather (clk, reset, read_valid, read_data, whole, word_end);
    wire row_end = word_end & (word == words - 1);
    assign loaded = row_end & (got_rows == rows - 1);
    wire bank_end = lane == PE_M - 1;
    always @(posedge clk) begin
        write <= word_end ? 64'd1 << lane : 64'd0;  // at most 64 banks
        write_address <= base + word;
        write_data <= whole;
        if (reset) begin
            word <= 0; got_rows <= 0; lane <= 0; base <= 0; half <= 0;
        end else if (word_end) begin
            word <= row_end ? 24'd0 : word + 24'd1;
            if (row_end) begin
                lane <= bank_end | loaded ? 24'd0 : lane + 24'd1;
                got_rows <= loaded ? 24'd0 : got_rows + 24'd1;
                if (loaded) begin
                    if (DOUBLE) half <= !half;
                    base <= DOUBLE & !half ? HALF : 0;
                end else if (bank_end) base <= base + words;
            end
        end
    end
endmodule
