// Words of BEATS beats out of what a memory port answers, the first beat lowest; `whole` is the
// word while `word_end` holds, which is the cycle of its last beat.
module word_beats #(parameter BEATS = 1, BYTES = 1) (
    input clk, input reset, input read_valid, input [BYTES*8-1:0] read_data,
    output [BEATS*BYTES*8-1:0] whole, output word_end
);
    reg [23:0] beat;
    assign word_end = read_valid & (beat == BEATS - 1);
    generate if (BEATS == 1) assign whole = read_data;
    else begin : shift
        reg [(BEATS-1)*BYTES*8-1:0] earlier;
        always @(posedge clk) if (read_valid) earlier <= {read_data, earlier} >> BYTES*8;
        assign whole = {read_data, earlier};
    end endgenerate
    always @(posedge clk)
        if (reset) beat <= 0;
        else if (read_valid) beat <= word_end ? 24'd0 : beat + 24'd1;
endmodule
