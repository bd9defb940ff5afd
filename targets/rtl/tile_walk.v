// The tile steps that a unit takes part in: groups, outer, inner and k, the last one innermost.
module tile_walk #(parameter GROUPS = 1, OUTER = 1, INNER = 1, K = 1) (
    input clk, input reset, input advance,
    output k_first, output k_last, output inner_last, output outer_last, output reg done
);
    reg [23:0] group, outer, inner, k;
    assign k_first = k == 0;
    assign k_last = k == K - 1;
    assign inner_last = inner == INNER - 1;
    assign outer_last = outer == OUTER - 1;
    wire group_last = group == GROUPS - 1;
    always @(posedge clk)
        if (reset) begin
            group <= 0; outer <= 0; inner <= 0; k <= 0; done <= 0;
        end else if (advance) begin
            k <= k_last ? 24'd0 : k + 24'd1;
            if (k_last) inner <= inner_last ? 24'd0 : inner + 24'd1;
            if (k_last & inner_last) outer <= outer_last ? 24'd0 : outer + 24'd1;
            if (k_last & inner_last & outer_last) begin
                group <= group + 24'd1;
                done <= group_last;
            end
        end
endmodule
